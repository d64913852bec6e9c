package pageblob

import (
	"errors"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// verdict is what an answer of the service means. err is a sentinel of package target, which says class, code and hint
// unless they are given here, or one of the errors below, which says nothing.
type verdict struct {
	err       error
	class     retry.Class // where err is no sentinel
	transient bool        // recoverable, whatever the sentinel says
	code      string
	hint      string
}

// What package target has no sentinel for.
var (
	errInternal   = errors.New("the service has an internal error")
	errBusy       = errors.New("the blob or container is in use")
	errRequest    = errors.New("the service does not accept the request")
	errAccount    = errors.New("the storage account does not work")
	errImmutable  = errors.New("an immutability policy or legal hold forbids the change")
	errSnapLimit  = errors.New("no more snapshots are possible")
	errWrongType  = errors.New("the blob is of another type")
	errArchived   = errors.New("the blob is not in the hot tier")
	errVersion    = errors.New("the service does not know this version of the protocol")
	errRedirected = errors.New("the service redirects to another address")
	errProxy      = errors.New("a proxy or firewall on the way refuses the request")
	errEncryption = errors.New("the blob is encrypted with a key that is not available")
)

const (
	hintProof     = "the credential is not valid: check target.credentials and that its key or token is of the account in target.url"
	hintRole      = "give the identity the role Storage Blob Data Contributor on the container (a SAS: permissions r, w, d, l, a, c), then resume the VM"
	hintFirewall  = "the account's firewall or network rules refuse this address: allow it, or use a private endpoint, then resume the VM"
	hintKeyAuth   = "the account does not allow this kind of credential: allow shared keys on it, or use target.credentials.type default"
	hintContainer = "create the container, or correct target.url; it is not created by itself"
	hintDeleted   = "the container is being deleted: wait until it is gone, create it again, and run vhdrelay resync --deep"
	hintAccount   = "look at the storage account in the portal, then resume the VM"
	hintStandard  = "use a general-purpose v2 account with standard page blobs: premium ones have 100 snapshots, one in ten minutes"
	hintWait      = "nothing to do: it is tried again"
	hintImmutable = "remove the policy from the container: replicas are written in place"
	hintVersion   = "the endpoint is too old (an emulator: start it with --skipApiVersionCheck)"
	hintProxy     = "allow the host of target.url at the proxy or firewall; it is tried again"
	hintProxyAuth = "give the proxy's user and password in HTTPS_PROXY of the service, then resume the VM"
	hintKind      = "use a general-purpose v2 account without hierarchical namespace"
)

// rateTypo is how the service spells SnapshotOperationRateExceeded on the wire; the SDK's constant is spelled right.
const rateTypo bloberror.Code = "SnaphotOperationRateExceeded"

// Codes that the service documents and the SDK has no constant for.
const (
	keyAuthForbidden    bloberror.Code = "KeyBasedAuthenticationNotPermitted"
	publicForbidden     bloberror.Code = "PublicAccessNotPermitted"
	keyVaultDisabled    bloberror.Code = "KeyVaultEncryptionKeyNotFound"
	accountRequiresTLS  bloberror.Code = "AccountRequiresHttps"
	leaseAlreadyBroken  bloberror.Code = "LeaseAlreadyBroken"
	notSupportedOnHNS   bloberror.Code = "FeatureNotYetSupportedForHierarchicalNamespaceAccounts"
	blobTypeUnsupported bloberror.Code = "BlobTypeNotSupported"
)

// table has a verdict for every error code that a request of this package can meet; byStatus has the rest.
var table = map[bloberror.Code]verdict{
	// Names.
	bloberror.BlobNotFound:            {err: target.ErrNotFound},
	bloberror.ResourceNotFound:        {err: target.ErrNotFound},
	bloberror.ContainerNotFound:       {err: target.ErrNoContainer, hint: hintContainer},
	bloberror.ContainerBeingDeleted:   {err: target.ErrNoContainer, code: "container-being-deleted", hint: hintDeleted},
	bloberror.ContainerDisabled:       {err: target.ErrNoContainer, code: "container-disabled", hint: hintAccount},
	bloberror.BlobAlreadyExists:       {err: target.ErrExists},
	bloberror.ResourceAlreadyExists:   {err: target.ErrExists},
	bloberror.InvalidResourceName:     {err: target.ErrName},
	bloberror.InvalidURI:              {err: target.ErrName},
	bloberror.RequestURLFailedToParse: {err: target.ErrName},

	// Conditions.
	bloberror.ConditionNotMet:               {err: target.ErrCondition},
	bloberror.TargetConditionNotMet:         {err: target.ErrCondition},
	bloberror.SequenceNumberConditionNotMet: {err: target.ErrSequence},

	// Leases. A mismatch is 409 in the documentation and 412 on the wire; the code is the same.
	bloberror.LeaseIDMissing:                        {err: target.ErrLeased},
	bloberror.LeaseIDMismatchWithBlobOperation:      {err: target.ErrLeased},
	bloberror.LeaseIDMismatchWithLeaseOperation:     {err: target.ErrLeased},
	bloberror.LeaseAlreadyPresent:                   {err: target.ErrLeased},
	bloberror.LeaseIsBreakingAndCannotBeAcquired:    {err: target.ErrLeased, transient: true, code: "lease-breaking", hint: hintWait},
	bloberror.LeaseIsBreakingAndCannotBeChanged:     {err: target.ErrLeased, transient: true, code: "lease-breaking", hint: hintWait},
	bloberror.LeaseIsBrokenAndCannotBeRenewed:       {err: target.ErrLeaseLost},
	bloberror.LeaseLost:                             {err: target.ErrLeaseLost},
	bloberror.LeaseNotPresentWithBlobOperation:      {err: target.ErrLeaseLost},
	bloberror.LeaseNotPresentWithLeaseOperation:     {err: target.ErrLeaseLost},
	leaseAlreadyBroken:                              {err: target.ErrLeaseLost},
	bloberror.LeaseIDMismatchWithContainerOperation: {err: target.ErrLeased, code: "container-leased", hint: "the container is leased: release that lease"},
	bloberror.LeaseNotPresentWithContainerOperation: {err: target.ErrLeaseLost, code: "container-lease-lost"},
	bloberror.InfiniteLeaseDurationRequired:         {err: errRequest, class: retry.Bug, code: "bad-request"},

	// Ranges and sizes.
	bloberror.InvalidPageRange:                 {err: target.ErrRange},
	bloberror.InvalidRange:                     {err: target.ErrRange},
	bloberror.OutOfRangeInput:                  {err: target.ErrRange},
	bloberror.RequestBodyTooLarge:              {err: target.ErrTooLarge},
	bloberror.MetadataTooLarge:                 {err: target.ErrTooLarge},
	bloberror.MaxBlobSizeConditionNotMet:       {err: target.ErrTooLarge},
	bloberror.ContentLengthLargerThanTierLimit: {err: target.ErrTooLarge, hint: hintStandard},

	// Checksums.
	bloberror.MD5Mismatch:   {err: target.ErrChecksum},
	bloberror.CRC64Mismatch: {err: target.ErrChecksum},
	bloberror.InvalidMD5:    {err: target.ErrChecksum},

	// Snapshots.
	bloberror.SnapshotsPresent:              {err: target.ErrSnapshots},
	bloberror.SnapshotOperationRateExceeded: {err: target.ErrThrottled, code: "snapshot-rate", hint: hintStandard},
	rateTypo:                                {err: target.ErrThrottled, code: "snapshot-rate", hint: hintStandard},
	bloberror.SnapshotCountExceeded:         {err: errSnapLimit, class: retry.NonRecoverable, code: "snapshot-count", hint: hintStandard},

	// Who we are.
	bloberror.AuthenticationFailed:              {err: target.ErrAuth, hint: hintProof},
	bloberror.InvalidAuthenticationInfo:         {err: target.ErrAuth, hint: hintProof},
	bloberror.NoAuthenticationInformation:       {err: target.ErrAuth, hint: hintProof},
	bloberror.AuthorizationFailure:              {err: target.ErrAuth, code: "not-permitted", hint: hintFirewall + "; otherwise " + hintRole + "; Azurite answers so to a wrong key"},
	bloberror.AuthorizationPermissionMismatch:   {err: target.ErrAuth, code: "not-permitted", hint: hintRole},
	bloberror.InsufficientAccountPermissions:    {err: target.ErrAuth, code: "not-permitted", hint: hintRole},
	bloberror.UnauthorizedBlobOverwrite:         {err: target.ErrAuth, code: "not-permitted", hint: hintRole},
	bloberror.AuthorizationResourceTypeMismatch: {err: target.ErrAuth, code: "not-permitted", hint: "the SAS is not for objects and containers: make one with resource types container and object"},
	bloberror.AuthorizationServiceMismatch:      {err: target.ErrAuth, code: "not-permitted", hint: "the SAS is not for blobs: make one for the blob service"},
	bloberror.AuthorizationProtocolMismatch:     {err: target.ErrAuth, code: "not-permitted", hint: "the SAS is for another protocol: use https"},
	bloberror.AuthorizationSourceIPMismatch:     {err: target.ErrAuth, code: "not-permitted", hint: "the SAS is for other addresses than ours"},
	keyAuthForbidden:                            {err: target.ErrAuth, code: "not-permitted", hint: hintKeyAuth},
	publicForbidden:                             {err: target.ErrAuth, hint: hintProof},
	accountRequiresTLS:                          {err: target.ErrAuth, hint: "use https in target.url"},

	// The account.
	bloberror.AccountIsDisabled:                      {err: errAccount, class: retry.NonRecoverable, code: "account-disabled", hint: hintAccount},
	bloberror.AccountBeingCreated:                    {err: errAccount, class: retry.Recoverable, code: "account-being-created", hint: hintWait},
	bloberror.AccountAlreadyExists:                   {err: errAccount, class: retry.Bug, code: "bad-request"},
	bloberror.BlobImmutableDueToPolicy:               {err: errImmutable, class: retry.NonRecoverable, code: "immutable", hint: hintImmutable},
	bloberror.ImmutabilityPolicyDeleteOnLockedPolicy: {err: errImmutable, class: retry.NonRecoverable, code: "immutable", hint: hintImmutable},
	bloberror.BlobUsesCustomerSpecifiedEncryption:    {err: errEncryption, class: retry.NonRecoverable, code: "encryption-key", hint: hintAccount},
	keyVaultDisabled:                                 {err: errEncryption, class: retry.NonRecoverable, code: "encryption-key", hint: hintAccount},
	notSupportedOnHNS:                                {err: errAccount, class: retry.NonRecoverable, code: "account-kind", hint: hintKind},
	blobTypeUnsupported:                              {err: errAccount, class: retry.NonRecoverable, code: "account-kind", hint: hintKind},
	bloberror.FeatureVersionMismatch:                 {err: errVersion, class: retry.NonRecoverable, code: "service-version", hint: hintVersion},
	bloberror.InvalidHeaderValue:                     {err: errVersion, class: retry.NonRecoverable, code: "service-version", hint: hintVersion},
	bloberror.InvalidVersionForPageBlobOperation:     {err: errVersion, class: retry.NonRecoverable, code: "service-version", hint: hintVersion},

	// Kinds of blobs.
	bloberror.InvalidBlobType:                          {err: errWrongType, class: retry.NonRecoverable, code: "blob-type", hint: "another program's blob has this name: use a prefix of our own in target.url"},
	bloberror.ResourceTypeMismatch:                     {err: errWrongType, class: retry.NonRecoverable, code: "blob-type", hint: "another program's blob has this name: use a prefix of our own in target.url"},
	bloberror.BlobArchived:                             {err: errArchived, class: retry.NonRecoverable, code: "blob-archived", hint: "move the blob to the hot tier and take lifecycle rules off the prefix"},
	bloberror.BlobBeingRehydrated:                      {err: errArchived, class: retry.Recoverable, code: "blob-archived", hint: hintWait},
	bloberror.OperationNotAllowedOnIncrementalCopyBlob: {err: errWrongType, class: retry.NonRecoverable, code: "blob-type", hint: "another program made this blob by incremental copy: use a prefix of our own in target.url"},

	// Time mends these.
	bloberror.ServerBusy:           {err: target.ErrThrottled},
	bloberror.InternalError:        {err: errInternal, class: retry.Recoverable, code: "service-error", hint: hintWait},
	bloberror.OperationTimedOut:    {err: errInternal, class: retry.Recoverable, code: "service-timeout", hint: hintWait},
	bloberror.SystemInUse:          {err: errBusy, class: retry.Recoverable, code: "blob-in-use", hint: hintWait},
	bloberror.PendingCopyOperation: {err: errBusy, class: retry.Recoverable, code: "blob-in-use", hint: "a copy onto the blob is under way: it is tried again; abort the copy if nobody needs it"},
	bloberror.BlobOverwritten:      {err: errBusy, class: retry.Recoverable, code: "blob-in-use", hint: hintWait},

	// The in-memory emulator is full: it frees what was overwritten every ten minutes.
	"MemoryExtentStoreAtSizeLimit": {err: errBusy, class: retry.Recoverable, code: "emulator-full", hint: "give Azurite a location on disk instead of memory"},
}

// byStatus is for codes that are not in the table: a proxy's answers, and what the service will invent.
func byStatus(status int) verdict {
	switch {
	case status == 401 || status == 403 || status == 407:
		return verdict{err: target.ErrAuth, hint: hintProof}
	case status == 404:
		return verdict{err: target.ErrNotFound}
	case status == 412:
		return verdict{err: target.ErrCondition}
	case status == 413:
		return verdict{err: target.ErrTooLarge}
	case status == 416:
		return verdict{err: target.ErrRange}
	case status == 429 || status == 503:
		return verdict{err: target.ErrThrottled}
	case status == 408 || status == 409 || status == 423:
		return verdict{err: errBusy, class: retry.Recoverable, code: "blob-in-use", hint: hintWait}
	case status >= 500:
		return verdict{err: errInternal, class: retry.Recoverable, code: "service-error", hint: hintWait}
	case status >= 400:
		return verdict{err: errRequest, class: retry.Bug, code: "bad-request"}
	case status >= 300:
		return verdict{err: errRedirected, class: retry.NonRecoverable, code: "redirected", hint: "correct target.url: the service itself never redirects"}
	}
	return verdict{err: errNotService, class: retry.Recoverable, code: "not-the-service", hint: "check target.url, and whether a proxy is between"}
}

// byProxy is for answers that no blob service gave. Of blobs they prove nothing, neither that one is missing nor that
// it is there; and what a proxy refuses today it may pass tomorrow.
func byProxy(status int) verdict {
	switch {
	case status == 407:
		return verdict{err: errProxy, class: retry.NonRecoverable, code: "proxy-authentication", hint: hintProxyAuth}
	case status == 401 || status == 403:
		return verdict{err: errProxy, class: retry.Recoverable, code: "proxy-refused", hint: hintProxy}
	case status >= 300 && status < 400 || status == 429 || status >= 500:
		return byStatus(status)
	}
	return byStatus(0)
}
