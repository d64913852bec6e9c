package shipper

import (
	"testing"
	"time"
)

// slowDocuments take a change when they are told to.
type slowDocuments struct{ began, goOn chan struct{} }

func (slowDocuments) Load(string, any) (bool, error) { return false, nil }

func (s slowDocuments) Save(string, any) error {
	s.began <- struct{}{}
	<-s.goOn
	return nil
}

func (slowDocuments) Remove(string) error { return nil }

func (slowDocuments) Keys(string) ([]string, error) { return nil, nil }

// Who looks at a document does not wait for the disk: it sees what is durable.
func TestLookingWaitsForNoWrite(t *testing.T) {
	docs := slowDocuments{make(chan struct{}), make(chan struct{})}
	d, _, err := openDocument[int](docs, "x")
	if err != nil {
		t.Fatal(err)
	}
	changed := make(chan error, 1)
	go func() { changed <- d.update(func(n *int) { *n = 1 }) }()
	<-docs.began
	looked := make(chan int, 1)
	go func() { looked <- d.get() }()
	select {
	case n := <-looked:
		if n != 0 {
			t.Errorf("%d is not durable yet", n)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits")
	}
	docs.goOn <- struct{}{}
	if err := <-changed; err != nil || d.get() != 1 {
		t.Errorf("%d, %v", d.get(), err)
	}
}
