package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"touchline"
)

// checkMessage parses data and wants m.
func checkMessage(t testing.TB, m Message, data []byte) {
	t.Helper()
	got, err := ParseMessage(data)
	if err != nil || !reflect.DeepEqual(got, m) {
		t.Errorf("%s parses to %+v, %v: want %+v", data, got, err, m)
	}
}

func TestMessage_IsJSONWithItsTypeFirst(t *testing.T) {
	messages := goldenMessages()
	messages["zero hello"] = &Hello{}
	messages["zero lost"] = &Lost{}
	messages["zero goaway"] = &Goaway{}
	for name, m := range messages {
		data, err := MarshalMessage(m)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(data) || !strings.HasPrefix(string(data), `{"type":"`+m.messageType()+`"`) {
			t.Errorf("%s: %s", name, data)
		}
		checkMessage(t, m, data)
	}
}

func TestParseMessage_IgnoresUnknownMembers(t *testing.T) {
	checkMessage(t, &Goaway{Reason: "drain"}, []byte(` {"new":[1,{"x":null}],"reason":"drain","type":"goaway","v":2} `))
}

func TestParseMessage_TellsUnknownFromMalformed(t *testing.T) {
	for data, unknown := range map[string]bool{
		`{"type":"weather","wind":5}`: true,
		`{"type":""}`:                 true,
		`{}`:                          true,
		``:                            false,
		`{`:                           false,
		`[]`:                          false,
		`"hello"`:                     false,
		`{"type":5}`:                  false,
		`{"type":"hello"} {}`:         false,
		`{"type":"hello","epochs":7}`: false,
		`{"type":"ack","stored":[{"epoch":"00","ranges":[]}]}`:                                         false,
		`{"type":"ack","stored":[{"epoch":"00112233445566778899aabbccddeeff","ranges":[[2,1]]}]}`:      false,
		`{"type":"ack","stored":[{"epoch":"00112233445566778899aabbccddeeff","ranges":[[0,1]]}]}`:      false,
		`{"type":"ack","stored":[{"epoch":"00112233445566778899aabbccddeeff","ranges":[[1,2,3]]}]}`:    false,
		`{"type":"resend","epoch":"00112233445566778899aabbccddeeff","ranges":[[1,9007199254740992]]}`: false,
		`{"type":"resend","epoch":"zz112233445566778899aabbccddeeff","ranges":[[1,1]]}`:                false,
		`{"type":"hello","gateway":"` + strings.Repeat("a", MaxMessageBytes) + `"}`:                    false,
		`{"type":` + strings.Repeat("[", MaxMessageBytes/2):                                            false,
	} {
		m, err := ParseMessage([]byte(data))
		if err == nil || m != nil {
			t.Errorf("%.80s: got %+v, %v: want an error", data, m, err)
		} else if errors.Is(err, ErrUnknownMessage) != unknown {
			t.Errorf("%.80s: %v", data, err)
		}
	}
}

// A bit that flips on the way makes no other ack of an ack.
func TestParseSealed_FindsEveryFlippedBit(t *testing.T) {
	for name, m := range goldenMessages() {
		sealed, err := MarshalMessage(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ParseSealed(sealed); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%s is read as %+v, %v", sealed, got, err)
		}
		for i := range 8 * len(sealed) {
			flipped := bytes.Clone(sealed)
			flipped[i/8] ^= 1 << (i % 8)
			got, err := ParseSealed(flipped)
			if err == nil && !reflect.DeepEqual(got, m) { // a digit of the CRC may have two cases
				t.Fatalf("%s: with bit %d flipped it is read as %+v", name, i, got)
			}
		}
	}
	for _, bare := range []string{`{"type":"ack"}`, `{"type":"weather"}`, `{}`, ``, `"}`} {
		if _, err := ParseSealed([]byte(bare)); !errors.Is(err, ErrSeal) {
			t.Errorf("%s: %v, want an error for want of a CRC", bare, err)
		}
	}
	if _, err := ParseMessage([]byte(`{"type":"goaway","crc":"00000000"}`)); !errors.Is(err, ErrSeal) {
		t.Errorf("a message with a wrong CRC is read: %v", err)
	}
}

func TestParseMessage_SortsRanges(t *testing.T) {
	checkMessage(t, &Resend{Epoch: goldenEpoch, Ranges: touchline.Ranges{{First: 1, Last: 9}}},
		[]byte(`{"type":"resend","epoch":"00112233445566778899AABBCCDDEEFF","ranges":[[5,9],[1,2],[2,4]]}`))
}

func FuzzParseMessage(f *testing.F) {
	for _, m := range goldenMessages() {
		data, err := MarshalMessage(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"type":"ack","stored":[{"epoch":"00112233445566778899aabbccddeeff","ranges":[[5,6],[1,2]]}]}`))
	f.Add([]byte(`{"type":"clock"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseMessage(data)
		if err != nil {
			if m != nil {
				t.Fatalf("%+v besides the error %v", m, err)
			}
			return
		}
		once, err := MarshalMessage(m)
		if err != nil {
			t.Fatalf("%s can be read but not be written: %v", data, err)
		}
		again, err := ParseMessage(once)
		if err != nil {
			t.Fatalf("%s: %v", once, err)
		}
		if twice, err := MarshalMessage(again); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s becomes %s, %v", once, twice, err)
		}
	})
}
