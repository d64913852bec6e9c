package retry

import (
	"syscall"
	"testing"
)

func TestMeaningsAreWhatDescribeSays(t *testing.T) {
	list := Meanings()
	class := map[string]Class{}
	for i, m := range list {
		if m.Action == "" || m.Code == "" || i > 0 && list[i-1].Code >= m.Code {
			t.Errorf("%d: %+v", i, m)
		}
		class[m.Code] = m.Class
	}
	for errno := range errnos {
		c, code, _, _ := Describe(syscall.Errno(errno))
		if got, known := class[code]; !known || got != c {
			t.Errorf("%v is %s, %v; the list has %v %v", errno, code, c, got, known)
		}
	}
	for code := range unanswered {
		if c, known := class[code]; known && c != Recoverable {
			t.Errorf("%s: nobody answered, and it is %v", code, c)
		}
	}
	if !Unanswered("connection-refused") || Unanswered("disk-full") || Unanswered("") {
		t.Error("Unanswered")
	}
}
