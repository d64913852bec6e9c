package control

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
)

// message is one line of a streamed answer. Exactly one field is set; Result or Error is the last line.
type message struct {
	Progress *Progress       `json:"progress,omitempty"`
	Data     []byte          `json:"data,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
	Error    *Error          `json:"error,omitempty"`
}

// stream is the server's side of a streamed answer.
type stream struct {
	// mu keeps lines whole. It is held while a line is written, so a client that does not read holds up its own call.
	mu struct {
		sync.Mutex
		out   *json.Encoder
		flush func() error
		err   error
	}
}

func newStream(w http.ResponseWriter) *stream {
	w.Header().Set("Content-Type", "application/x-ndjson")
	s := &stream{}
	s.mu.out = json.NewEncoder(w)
	s.mu.flush = http.NewResponseController(w).Flush
	// The head goes out now: a command that is interrupted later knows that it was heard.
	s.mu.err = s.mu.flush()
	return s
}

// send writes one line. The first failure sticks: the client is gone.
func (s *stream) send(m message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.err == nil {
		s.mu.err = s.mu.out.Encode(m)
	}
	if s.mu.err == nil {
		s.mu.err = s.mu.flush()
	}
	return s.mu.err
}

func (s *stream) progress(p Progress) { _ = s.send(message{Progress: &p}) }

// Write sends raw output, for dumps.
func (s *stream) Write(p []byte) (int, error) {
	if err := s.send(message{Data: p}); err != nil {
		return 0, err
	}
	return len(p), nil
}

// streamed makes a handler of a call that answers with a stream.
func streamed(call func(context.Context, request, *stream) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var q request
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxRequest)).Decode(&q); err != nil {
			answer(w, nil, &Error{Code: CodeUsage, Message: "bad request: " + err.Error(), Exit: ExitUsage})
			return
		}
		s := newStream(w)
		result, err := call(r.Context(), q, s)
		_ = s.send(last(result, err))
	}
}

func last(result any, err error) message {
	if err == nil {
		var raw json.RawMessage
		if raw, err = json.Marshal(result); err == nil {
			return message{Result: raw}
		}
	}
	return message{Error: asError(err)}
}
