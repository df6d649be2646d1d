//! The kinds of request, and how a mix of them is drawn.

use std::time::Duration;

/// What a request does and what must be true of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `GET /` on a kept-alive connection.
    Short,
    /// `GET /` on a connection of its own.
    Fresh,
    /// `GET /slow`: the answer may not come before its time.
    Slow {
        /// How long the shop waits before it answers.
        ms: u32,
    },
    /// `POST /echo`: every byte must come back.
    Echo {
        /// Length of the body.
        bytes: u32,
    },
    /// `GET /stream`: every event must arrive, and the end.
    Stream {
        /// How many events.
        events: u32,
        /// Time between two.
        every_ms: u32,
    },
    /// A WebSocket session on `/ws`: every message must come back over its whole life, and the close, too.
    Socket {
        /// How many messages.
        messages: u32,
        /// Time between two.
        every_ms: u32,
        /// Length of each.
        bytes: u32,
    },
}

impl Kind {
    /// The kind's name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::Fresh => "fresh",
            Self::Slow { .. } => "slow",
            Self::Echo { .. } => "echo",
            Self::Stream { .. } => "stream",
            Self::Socket { .. } => "socket",
        }
    }

    /// How long a good answer takes by the request's own nature.
    pub fn natural_length(self) -> Duration {
        let ms = match self {
            Self::Short | Self::Fresh | Self::Echo { .. } => 0,
            Self::Slow { ms } => u64::from(ms),
            Self::Stream { events, every_ms } => u64::from(events) * u64::from(every_ms),
            Self::Socket { messages, every_ms, .. } => u64::from(messages) * u64::from(every_ms),
        };
        Duration::from_millis(ms)
    }
}

/// Kinds with their weights.
#[derive(Debug, Clone)]
pub struct Mix {
    kinds: Vec<(Kind, u32)>,
    total: u64,
}

impl Mix {
    /// A mix in which each kind comes as often as its weight says; `None` when the weights add up to nothing.
    pub fn new(kinds: impl IntoIterator<Item = (Kind, u32)>) -> Option<Self> {
        let kinds: Vec<_> = kinds.into_iter().collect();
        let total = kinds.iter().map(|(_, weight)| u64::from(*weight)).sum();
        (total > 0).then_some(Self { kinds, total })
    }

    /// Only this kind.
    pub fn only(kind: Kind) -> Self {
        Self { kinds: vec![(kind, 1)], total: 1 }
    }

    /// Every kind, in proportions in which each is under way at any moment of a load of some tens a second.
    pub fn every_kind() -> Self {
        let kinds = vec![
            (Kind::Short, 40),
            (Kind::Fresh, 15),
            (Kind::Slow { ms: 400 }, 15),
            (Kind::Echo { bytes: 20_000 }, 15),
            (Kind::Stream { events: 20, every_ms: 50 }, 10),
            (Kind::Socket { messages: 30, every_ms: 100, bytes: 200 }, 5),
        ];
        Self { total: kinds.iter().map(|(_, weight)| u64::from(*weight)).sum(), kinds }
    }

    /// The kind of the request with this index: always the same for the same seed.
    pub(super) fn choose(&self, seed: u64, index: u64) -> Kind {
        let mut drawn = scramble(seed ^ scramble(index)) % self.total;
        for (kind, weight) in &self.kinds {
            let weight = u64::from(*weight);
            if drawn < weight {
                return *kind;
            }
            drawn -= weight;
        }
        // Not reached: what is drawn is less than the sum of the weights.
        Kind::Short
    }
}

/// Bytes that look random and are the same for the same arguments.
pub(super) fn payload(seed: u64, index: u64, length: u32) -> Vec<u8> {
    let mut state = scramble(seed.wrapping_add(scramble(index)));
    let mut bytes = Vec::with_capacity(length as usize + 8);
    while bytes.len() < length as usize {
        state = scramble(state);
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes
}

/// SplitMix64: every bit of the result depends on every bit of the state.
fn scramble(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::{Kind, Mix, payload};
    use std::collections::BTreeMap;

    #[test]
    fn a_mix_keeps_its_proportions_and_its_seed() {
        let mix = Mix::new([(Kind::Short, 3), (Kind::Fresh, 1), (Kind::Slow { ms: 1 }, 0)]).unwrap();
        let mut counts = BTreeMap::new();
        for index in 0..10_000 {
            assert_eq!(mix.choose(7, index), mix.choose(7, index));
            *counts.entry(mix.choose(7, index)).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 2, "{counts:?}");
        assert!((7_300..7_700).contains(&counts[&Kind::Short]), "{counts:?}");
        assert!(Mix::new([(Kind::Short, 0)]).is_none());
    }

    #[test]
    fn payloads_differ_between_requests() {
        assert_eq!(payload(1, 2, 1001), payload(1, 2, 1001));
        assert_eq!(payload(1, 2, 1001).len(), 1001);
        assert_ne!(payload(1, 2, 1001), payload(1, 3, 1001));
        assert_ne!(payload(1, 2, 1001), payload(2, 2, 1001));
    }
}
