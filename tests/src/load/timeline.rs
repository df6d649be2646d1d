//! Which releases were allowed to serve when.

use std::collections::BTreeSet;
use std::time::Duration;

/// The sets of releases that were allowed to serve, each from a moment until the next. Before the first, none was.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    changes: Vec<(Duration, BTreeSet<String>)>,
}

impl Timeline {
    /// A timeline on which nothing is allowed.
    pub fn new() -> Self {
        Self::default()
    }

    /// From `at` on (a load's time), exactly these releases are allowed. A switch takes time: allow both from before
    /// it is asked for until it is known to be done.
    pub fn allow_from<R: Into<String>>(
        &mut self,
        at: Duration,
        releases: impl IntoIterator<Item = R>,
    ) -> &mut Self {
        let place = self.changes.partition_point(|(other, _)| *other <= at);
        self.changes.insert(place, (at, releases.into_iter().map(Into::into).collect()));
        self
    }

    /// Every release that was allowed at some moment of this closed span.
    pub fn allowed_between(&self, from: Duration, to: Duration) -> BTreeSet<&str> {
        let in_force = self.changes.partition_point(|(at, _)| *at <= from).saturating_sub(1);
        let begun = self.changes.partition_point(|(at, _)| *at <= to);
        let sets = self.changes.get(in_force..begun).unwrap_or_default();
        sets.iter().flat_map(|(_, releases)| releases.iter().map(String::as_str)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Timeline;
    use std::time::Duration;

    #[test]
    fn a_span_sees_every_set_that_held_within_it() {
        let ms = Duration::from_millis;
        let mut timeline = Timeline::new();
        timeline.allow_from(ms(200), ["v2"]).allow_from(ms(100), ["v1", "v2"]).allow_from(ms(10), ["v1"]);
        let allowed =
            |from, to| timeline.allowed_between(ms(from), ms(to)).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(allowed(0, 9), "");
        assert_eq!(allowed(0, 10), "v1");
        assert_eq!(allowed(50, 99), "v1");
        assert_eq!(allowed(50, 100), "v1 v2");
        assert_eq!(allowed(150, 160), "v1 v2");
        assert_eq!(allowed(199, 200), "v1 v2");
        assert_eq!(allowed(200, 900), "v2");
        assert_eq!(allowed(0, 900), "v1 v2");
    }
}
