package pageblob

import "github.com/vhdrelay/vhdrelay/shipper/retry"

// special are the codes that no answer's own code leads to: what is found out beside it.
var special = []retry.Meaning{
	{Code: "account-not-resolved", Class: retry.Recoverable, Action: "check the account in target.url, and the name service"},
	{Code: "ca-file", Class: retry.NonRecoverable, Action: "put the PEM certificates of the endpoint's authority into target.ca_file, or leave it out"},
	{Code: "clock-skew", Class: retry.Recoverable, Action: "set this machine's clock right (timedatectl)"},
	{Code: "credential-changed", Class: retry.Recoverable, Action: "nothing to do: the credential has just changed and is tried again"},
	{Code: "credential-type", Class: retry.NonRecoverable, Action: "correct target.credentials.type"},
	{Code: "credential-unusable", Class: retry.NonRecoverable, Action: "mend the file or the variable that the message names"},
	{Code: "no-token", Class: retry.NonRecoverable, Action: "give the machine a managed identity, log in, or set target.credentials"},
	{Code: "sas-expired", Class: retry.NonRecoverable, Action: "write a new SAS to the file of target.credentials, then resume the VM"},
	{Code: "target-url", Class: retry.NonRecoverable, Action: "correct target.url"},
	{Code: "token-needs-https", Class: retry.NonRecoverable, Action: "use https in target.url, or another kind of credential"},
}

// Meanings are the codes that answers of the service have here, each once.
func Meanings() []retry.Meaning {
	list := special
	add := func(v verdict) {
		if e := v.error(op{}, v.err); e.Hint != "" {
			list = append(list, retry.Meaning{Code: e.Code, Class: e.Class, Action: e.Hint})
		} else {
			list = append(list, retry.Meaning{Code: e.Code, Class: e.Class, Action: retry.DefaultAction(e.Class)})
		}
	}
	for _, v := range table {
		add(v)
	}
	for status := 300; status < 600; status++ {
		add(byStatus(status))
	}
	add(byStatus(0))
	return retry.Sorted(list)
}
