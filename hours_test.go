package touchline_test

import (
	"testing"
	"time"

	"touchline"
)

func TestHours_WaitUntilTheyBegin(t *testing.T) {
	night, err := touchline.ParseHours("23:00-07:00")
	if err != nil {
		t.Fatal(err)
	}
	noon, err := touchline.ParseHours("12:30-13:00")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		h    touchline.Hours
		at   string
		wait time.Duration
	}{
		{night, "22:59", time.Minute}, {night, "23:00", 0}, {night, "00:00", 0}, {night, "06:59", 0}, {night, "07:00", 16 * time.Hour},
		{noon, "12:29", time.Minute}, {noon, "12:30", 0}, {noon, "13:00", 23*time.Hour + 30*time.Minute},
		{touchline.Hours{}, "13:00", 0},
	} {
		at, err := time.Parse("15:04", c.at)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.h.Wait(at); got != c.wait {
			t.Errorf("%v at %s: %v, want %v", c.h, c.at, got, c.wait)
		}
	}
	for _, bad := range []string{"23-7", "23:00", "24:00-07:00", "23:00-07:60", "23:00 07:00", "-----------"} {
		if _, err := touchline.ParseHours(bad); err == nil {
			t.Errorf("hours %q are taken", bad)
		}
	}
}
