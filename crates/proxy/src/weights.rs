//! Choosing a release by weight: deterministic, and even over short stretches.
//!
//! A random choice gives a 10 % canary anything from 4 to 17 of its first hundred requests. Here it gets ten. The choice is
//! a fixed schedule, as short as the weights allow (10 slots for 10 %, 10,000 for 0.01 %), laid out by smooth weighted round
//! robin so that a release's slots lie as far apart as they can, and read in order. Each round is read from another starting
//! slot, so a client whose own pattern repeats (every second request is a heavy one) does not always meet the same release.
//!
//! Invariants: each round holds each release exactly in proportion; a release of weight 0 is never chosen.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::table::WHOLE_BP;

/// How many buckets sticky users are spread over: a bucket is one basis point.
pub(crate) const BUCKETS: u32 = WHOLE_BP;

/// Steps through the buckets so that any stretch of new users is spread evenly: near BUCKETS / golden ratio, and coprime to it.
const BUCKET_STEP: u64 = 6_181;

/// A schedule over the releases of one route. Shared by all workers.
#[derive(Debug)]
pub(crate) struct Schedule {
    slots: Box<[u8]>,
    next: AtomicU64,
    next_bucket: AtomicU64,
}

impl Schedule {
    /// `weights` in basis points, at most 256 of them (the table's validation holds that). Without any weight there is one
    /// slot, which nobody asks for.
    pub(crate) fn new(weights: &[u32]) -> Schedule {
        let divisor = weights.iter().copied().fold(0, greatest_common_divisor).max(1);
        let parts: Vec<i64> = weights.iter().map(|weight| i64::from(weight / divisor)).collect();
        let length: i64 = parts.iter().sum::<i64>().max(1);
        let mut credit = vec![0i64; parts.len()];
        let slots = (0..length)
            .map(|_| {
                let mut best = 0;
                for (index, part) in parts.iter().enumerate() {
                    credit[index] += part;
                    if credit[index] > credit[best] {
                        best = index;
                    }
                }
                if let Some(chosen) = credit.get_mut(best) {
                    *chosen -= length;
                }
                u8::try_from(best).unwrap_or(u8::MAX)
            })
            .collect();
        Schedule { slots, next: AtomicU64::new(0), next_bucket: AtomicU64::new(0) }
    }

    /// Index of the release that gets the next request.
    pub(crate) fn choose(&self) -> usize {
        let length = self.slots.len() as u64;
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let (round, slot) = (n / length, n % length);
        let start = (round.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % length;
        usize::from(self.slots[((start + slot) % length) as usize])
    }

    /// The bucket of a user never seen before.
    pub(crate) fn new_bucket(&self) -> u32 {
        let n = self.next_bucket.fetch_add(1, Ordering::Relaxed);
        (n.wrapping_mul(BUCKET_STEP) % u64::from(BUCKETS)) as u32
    }
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// The release that owns `bucket` when the releases lie one after the other, each as wide as its weight.
///
/// `order` lists release indices, candidates first: as a candidate's weight rises its stretch only grows, so a user who
/// is on it stays on it. None if no release has weight.
pub(crate) fn owner_of_bucket(bucket: u32, order: &[usize], weights: &[u32]) -> Option<usize> {
    let mut end = 0;
    for &index in order {
        end += weights.get(index)?;
        if bucket < end {
            return Some(index);
        }
    }
    order.iter().rev().copied().find(|&index| weights.get(index).is_some_and(|w| *w > 0))
}

/// Spreads an address over the buckets (FNV-1a and a final mix: small, stable over restarts and versions).
pub(crate) fn bucket_of_address(address: std::net::IpAddr) -> u32 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    match address.to_canonical() {
        std::net::IpAddr::V4(v4) => eat(&v4.octets()),
        std::net::IpAddr::V6(v6) => eat(&v6.octets()),
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    (hash % u64::from(BUCKETS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Weights that sum to the whole, some of them 0, in steps of `step` basis points.
    fn weights(step: u32) -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0u32..=WHOLE_BP / step, 0..6).prop_map(move |mut cuts| {
            cuts.push(0);
            cuts.push(WHOLE_BP / step);
            cuts.sort_unstable();
            cuts.windows(2).map(|w| (w[1] - w[0]) * step).collect()
        })
    }

    proptest! {
        #[test]
        fn each_hundred_holds_each_release_exactly_its_percents(weights in weights(100), hundreds in 1usize..5) {
            let schedule = Schedule::new(&weights);
            for _ in 0..hundreds {
                let mut seen = vec![0u32; weights.len()];
                for _ in 0..100 {
                    seen[schedule.choose()] += 100;
                }
                prop_assert_eq!(&seen, &weights);
            }
        }

        /// At any moment no release is further from its share than there are releases, and one more.
        #[test]
        fn every_prefix_is_near_its_share(weights in weights(1), length in 1usize..400) {
            let schedule = Schedule::new(&weights);
            let mut seen = vec![0f64; weights.len()];
            for n in 1..=length {
                seen[schedule.choose()] += 1.0;
                for (got, weight) in seen.iter().zip(&weights) {
                    let want = n as f64 * f64::from(*weight) / f64::from(WHOLE_BP);
                    prop_assert!((got - want).abs() <= weights.len() as f64 + 1.0, "{got} of {want} after {n}: {weights:?}");
                }
            }
        }

        #[test]
        fn a_rising_candidate_never_loses_a_user(bucket in 0..BUCKETS, low in 0..=WHOLE_BP, more in 0..=WHOLE_BP) {
            let high = (low + more).min(WHOLE_BP);
            let before = owner_of_bucket(bucket, &[1, 0], &[WHOLE_BP - low, low]);
            let after = owner_of_bucket(bucket, &[1, 0], &[WHOLE_BP - high, high]);
            prop_assert!(before != Some(1) || after == Some(1));
        }

        #[test]
        fn a_release_without_weight_owns_no_bucket(bucket in 0..BUCKETS, weights in weights(1)) {
            let order: Vec<usize> = (0..weights.len()).collect();
            let owner = owner_of_bucket(bucket, &order, &weights).expect("weights sum to the whole");
            prop_assert!(weights[owner] > 0);
        }
    }

    #[test]
    fn new_users_are_spread_evenly() {
        let schedule = Schedule::new(&[9_000, 1_000]);
        for hundred in 0..100 {
            let on_candidate = (0..100).filter(|_| schedule.new_bucket() < BUCKETS / 10).count();
            assert!((8..=12).contains(&on_candidate), "{on_candidate} of hundred {hundred}");
        }
    }

    #[test]
    fn addresses_spread_over_the_buckets() {
        let on_candidate = (0..10_000u32)
            .filter(|n| bucket_of_address(std::net::Ipv4Addr::from(0x0a00_0000 + n).into()) < BUCKETS / 10)
            .count();
        assert!((800..=1200).contains(&on_candidate), "{on_candidate} of 1000");
    }
}
