//! The clock of a process, in a process of its own: the test moves it, and others compare it with
//! the machine's.

use runtime::clock::{continue_from, now};
use schemas::{Millis, UnixMillis};

#[test]
fn what_is_written_down_already_is_gone_on_from() {
    let before = now();
    continue_from(UnixMillis(0));
    let same = now();
    assert!(same >= before && before.until(same) < Millis::from_secs(60));
    let later = same.after(Millis::from_secs(7200));
    continue_from(later);
    let went_on = now();
    assert!(went_on >= later && later.until(went_on) < Millis::from_secs(60));
    continue_from(before);
    assert!(now() >= went_on, "never back");
}
