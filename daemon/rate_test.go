package daemon

import "testing"

func TestRate_IsTheMeanOfTheWindow(t *testing.T) {
	var r rate
	if got := r.perSecond(); got != 0 {
		t.Errorf("before any reading: %v", got)
	}
	r.add(100)
	if got := r.perSecond(); got != 0 {
		t.Errorf("after one reading: %v", got)
	}
	r.add(150)
	if got := r.perSecond(); got != 50 {
		t.Errorf("after two readings: %v, want 50", got)
	}
	for i := range 30 { // 20 a second from now on
		r.add(150 + uint64(i+1)*20)
	}
	if got := r.perSecond(); got != 20 {
		t.Errorf("have %v, want 20: the window holds nothing older", got)
	}
}
