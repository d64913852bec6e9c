package main

func (b *bench) latency() ([]row, error) { return nil, nil }
func (b *bench) stateDisk() ([]row, error) { return nil, nil }
func (b *bench) shipping() ([]row, error) { return nil, nil }
func (b *bench) scan() ([]row, error) { return nil, nil }
func (b *bench) crash() ([]row, error) { return nil, nil }
func (b *bench) memory() ([]row, error) { return nil, nil }
