//! Shares as HAProxy's whole-numbered weights.
//!
//! A server's weight is 0 to 256, so a share is reached as a ratio of whole numbers: exactly where the instances allow it (10 % of two
//! releases with one instance each is 1 to 9), else as near as they do. With one instance on either side the smallest share is 1/257,
//! and no share is missed by more than 0.2 percentage points.

/// HAProxy's largest weight.
const LARGEST: u64 = 256;
/// All of it, in basis points.
const WHOLE: u64 = 10_000;
/// Sums that are tried: enough for every share in basis points.
const LARGEST_SUM: u64 = 10_000;

/// Weights of each release's members, for shares in basis points and counts of members.
pub(crate) fn weights(releases: &[(u32, usize)]) -> Vec<Vec<u32>> {
    let shares: Vec<(u64, u64)> =
        releases.iter().map(|(share, count)| (u64::from(*share), *count as u64)).collect();
    let room: u64 = shares.iter().map(|(_, count)| count * LARGEST).sum();
    let mut best: Option<((u64, u64, u64), Vec<u64>)> = None;
    for sum in 1..=room.min(LARGEST_SUM) {
        let parts: Vec<u64> = shares
            .iter()
            .map(|(share, count)| {
                let nearest = (share * sum + WHOLE / 2) / WHOLE;
                // Who has a share gets something, and who has none gets nothing.
                if *share == 0 || *count == 0 { 0 } else { nearest.clamp(1, count * LARGEST) }
            })
            .collect();
        let all: u64 = parts.iter().sum();
        if all == 0 {
            continue;
        }
        let error = |part: u64, share: u64| (part * WHOLE * 1_000 / all).abs_diff(share * 1_000);
        let worst =
            shares.iter().zip(&parts).map(|((share, _), part)| error(*part, *share)).max().unwrap_or(0);
        // As near as can be, then the members of a release alike, then small numbers: turns come round sooner.
        let uneven = shares.iter().zip(&parts).filter(|((_, count), part)| *count > 0 && *part % count != 0);
        let key = (worst, uneven.count() as u64, sum);
        if best.as_ref().is_none_or(|(found, _)| key < *found) {
            best = Some((key, parts));
        }
    }
    let parts = best.map(|(_, parts)| parts).unwrap_or_else(|| vec![0; releases.len()]);
    shares
        .iter()
        .zip(parts)
        .map(|((_, count), part)| {
            (0..*count)
                .map(|member| part / count + u64::from(member < part % count))
                .map(|weight| u32::try_from(weight).unwrap_or(0))
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reached(releases: &[(u32, usize)]) -> Vec<f64> {
        let weights = weights(releases);
        let sum: u32 = weights.iter().flatten().sum();
        weights.iter().map(|of| f64::from(of.iter().sum::<u32>()) / f64::from(sum)).collect()
    }

    #[test]
    fn whole_percents_are_exact_where_the_instances_allow_it() {
        assert_eq!(weights(&[(9_000, 1), (1_000, 1)]), [[9], [1]]);
        assert_eq!(weights(&[(9_000, 2), (1_000, 1)]), [vec![9, 9], vec![2]]);
        assert_eq!(weights(&[(10_000, 3)]), [[1, 1, 1]]);
        assert_eq!(weights(&[(0, 1), (10_000, 1)]), [[0], [1]]);
        assert_eq!(weights(&[]), Vec::<Vec<u32>>::new());
    }

    #[test]
    fn no_share_from_half_a_percent_on_is_missed_by_more_than_the_documentation_says() {
        for share in (50..=9_950).step_by(101) {
            for (stable, candidate) in [(1, 1), (2, 1), (3, 3), (4, 1)] {
                let found = reached(&[(WHOLE as u32 - share, stable), (share, candidate)]);
                let missed = (found[1] - f64::from(share) / 10_000.0).abs();
                assert!(missed <= 0.002, "{share} of {stable} and {candidate}: {found:?}");
                assert!(
                    weights(&[(WHOLE as u32 - share, stable), (share, candidate)])
                        .iter()
                        .flatten()
                        .all(|w| *w <= 256)
                );
            }
        }
    }
}
