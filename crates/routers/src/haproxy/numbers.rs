//! What HAProxy has counted of a release, over the slots that it was given.

use super::Slot;
use super::runtime::{Answers, CLASSES, Counted, mean_ms};
use cdpipe_model::id::ReleaseId;
use std::collections::BTreeMap;

/// What was counted since a slot was given. An HAProxy that was restarted counts from zero.
pub(super) fn since(now: u64, base: u64) -> u64 {
    now.checked_sub(base).unwrap_or(now)
}

/// What was counted of a release, or of all, as Prometheus text.
#[allow(clippy::cast_precision_loss, reason = "counts of requests, far below 2^53")]
pub(super) fn numbers(
    slots: &[Slot],
    counted: &BTreeMap<String, Counted>,
    release: Option<&ReleaseId>,
) -> String {
    let mut sum = Answers::default();
    // The mean over slots, each by its answers.
    let (mut time_ms, mut answers) = (0.0, 0.0);
    for slot in slots.iter().filter(|slot| release.is_none_or(|release| slot.release == *release)) {
        let Some(now) = counted.get(&slot.name) else { continue };
        for (class, (now, base)) in
            sum.of_class.iter_mut().zip(now.answers.of_class.iter().zip(slot.before.of_class))
        {
            *class += since(*now, base);
        }
        sum.connect_errors += since(now.answers.connect_errors, slot.before.connect_errors);
        sum.aborted += since(now.answers.aborted, slot.before.aborted);
        let before = if now.requests < slot.base { (0, 0) } else { (slot.before_ms, slot.base) };
        if let Some(mean_ms) = mean_ms(before, (now.response_ms, now.requests)) {
            let of = since(now.requests, slot.base) as f64;
            time_ms += mean_ms * of;
            answers += of;
        }
    }
    let mut text = String::new();
    for (count, (_, code)) in sum.of_class.iter().zip(CLASSES) {
        text.push_str(&format!("requests_total{{code=\"{code}\"}} {count}\n"));
    }
    text.push_str(&format!("connect_errors_total {}\naborted_total {}\n", sum.connect_errors, sum.aborted));
    if answers > 0.0 {
        text.push_str(&format!("response_time_seconds {:.6}\n", time_ms / answers / 1000.0));
    }
    text
}
