//! Which machine gets how many instances, and in which order all of them are told. Pure.

use cdpipe_model::InstanceId;
use cdpipe_model::observe::Instance;

/// What runs on one machine, and the ids of those that have an extra environment.
pub(crate) type List = (Vec<Instance>, Vec<InstanceId>);

/// How many instances each machine should have so that there are `count`, none where some run loses one, and each new one goes to the
/// machine that has the fewest, the first in the list among equals. `None` stands for a machine that is away and gets none.
pub(crate) fn wanted(running: &[Option<u32>], count: u32) -> Vec<u32> {
    let mut wanted: Vec<u32> = running.iter().map(|running| running.unwrap_or(0)).collect();
    let here: Vec<usize> = (0..running.len()).filter(|index| running[*index].is_some()).collect();
    let mut missing = count.saturating_sub(wanted.iter().sum());
    while missing > 0 {
        let Some(fewest) = here.iter().copied().min_by_key(|index| (wanted[*index], *index)) else { break };
        wanted[fewest] += 1;
        missing -= 1;
    }
    wanted
}

/// Of how many instances each machine is to wait, so that all wait for `count`: for those that it has, from the first machine on.
pub(crate) fn awaited(running: &[u32], count: u32) -> Vec<u32> {
    let mut left = count;
    let mut awaited: Vec<u32> = running
        .iter()
        .map(|running| {
            let here = left.min(*running);
            left -= here;
            here
        })
        .collect();
    // More than there are: the first says so.
    if let Some(first) = awaited.first_mut() {
        *first += left;
    }
    awaited
}

/// Instances of all machines in one list: the first of each machine in the order of the machines, then the second of each, and so on;
/// those with an extra environment last. Whoever goes through it in batches goes from machine to machine.
pub(crate) fn in_order(machines: Vec<List>) -> Vec<Instance> {
    let mut found = Vec::new();
    for (machine, (instances, canaries)) in machines.into_iter().enumerate() {
        let (mut stable, mut canary) = (0, 0);
        for instance in instances {
            let is_canary = canaries.contains(&instance.id);
            let place = if is_canary { &mut canary } else { &mut stable };
            found.push((is_canary, *place, machine, instance));
            *place += 1;
        }
    }
    found.sort_by_key(|(is_canary, place, machine, _)| (*is_canary, *place, *machine));
    found.into_iter().map(|(_, _, _, instance)| instance).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_instances_go_where_there_are_fewest_and_none_is_lost() {
        assert_eq!(wanted(&[Some(0), Some(0), Some(0)], 4), [2, 1, 1]);
        assert_eq!(wanted(&[Some(0), Some(1), Some(1)], 3), [1, 1, 1]);
        assert_eq!(wanted(&[Some(3), Some(0)], 2), [3, 0]);
        assert_eq!(wanted(&[Some(1), None, Some(1)], 3), [2, 0, 1]);
        assert_eq!(wanted(&[None], 3), [0]);
        // Asked again, the same.
        assert_eq!(wanted(&[Some(2), Some(1), Some(1)], 4), [2, 1, 1]);
    }

    #[test]
    fn all_together_wait_for_as_many_as_were_asked_for() {
        assert_eq!(awaited(&[2, 1, 1], 3), [2, 1, 0]);
        assert_eq!(awaited(&[1, 1], 3), [2, 1]);
        assert_eq!(awaited(&[], 3), [0; 0]);
    }

    #[test]
    fn the_list_goes_from_machine_to_machine_with_canaries_last() {
        let instance =
            |id: &str| Instance { id: id.into(), address: None, ready: true, reached_at: None, restarts: 0 };
        let list = in_order(vec![
            (vec![instance("a1"), instance("a2"), instance("ac")], vec!["ac".into()]),
            (vec![instance("bc"), instance("b1")], vec!["bc".into()]),
        ]);
        let ids: Vec<&str> = list.iter().map(|instance| instance.id.as_str()).collect();
        assert_eq!(ids, ["a1", "b1", "a2", "ac", "bc"]);
    }
}
