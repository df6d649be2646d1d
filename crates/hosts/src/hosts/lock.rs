//! The lease of an environment over all its machines.

use super::{Hosts, strange};
use crate::protocol::{Reply, Request};
use crate::ssh::is_away;
use cdpipe_model::Fault;
use cdpipe_model::plan::LockKey;
use cdpipe_model::ports::{Call, LockOwner, LockState};
use futures_util::future::join_all;
use std::time::Duration;

/// A call about a lock answers within this, also while one machine is silent.
const LOCK_ANSWER: Duration = Duration::from_secs(8);

impl Hosts {
    /// Takes the lease on each machine: on the first by name alone, so that of two runs one gets it, then on the others at once.
    pub(super) async fn lock_all(
        &self,
        call: Call<'_>,
        key: &LockKey,
        owner: &LockOwner,
        lease: Duration,
    ) -> Result<u64, Fault> {
        let call = Call { deadline: call.deadline.min(LOCK_ANSWER), ..call };
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Lock { key: key.clone(), owner: owner.clone(), lease_ms };
        let mut order: Vec<usize> = (0..self.machines.len()).collect();
        order.sort_by_key(|index| &self.machines[*index].label);
        let (first, rest) = order.split_at(order.len().min(1));
        let ask = async |index: usize| {
            let answer = tokio::time::timeout(call.deadline, self.ask(index, call, &request)).await;
            let silent = || {
                Err(Fault::new("ssh-unreachable", format!("{} does not answer", self.names[index]))
                    .transient())
            };
            (index, answer.unwrap_or_else(|_| silent()))
        };
        let mut answers = Vec::new();
        for index in first {
            answers.push(ask(*index).await);
        }
        if !matches!(&answers[..], [(_, Err(fault))] if !is_away(fault)) {
            answers.extend(join_all(rest.iter().map(|index| ask(*index))).await);
        }
        let mut epochs = Vec::new();
        let (mut was_ours, mut away, mut refused) = (false, None, None);
        for (index, answer) in answers {
            match answer {
                Ok(Reply::Locked { epoch, was_ours: ours }) => {
                    was_ours |= ours;
                    epochs.push((index, epoch));
                }
                Ok(_) => return Err(strange()),
                Err(fault) if is_away(&fault) => away = away.or(Some(fault)),
                Err(fault) => {
                    let message = format!("{}: {}", self.names[index], fault.message);
                    refused = refused.or(Some(Fault { message, ..fault }));
                }
            }
        }
        // A lock that is held goes on with the machines that are there; a new one needs all of them.
        let in_the_way = refused.or(away.filter(|_| !was_ours));
        if let Some(fault) = in_the_way {
            if !was_ours {
                let unlock = Request::Unlock { key: key.clone(), owner: owner.clone() };
                join_all(epochs.iter().map(|(index, _)| self.ask(*index, call, &unlock))).await;
                self.outages.forget();
            }
            return Err(fault);
        }
        let newest = epochs.iter().map(|(_, epoch)| *epoch).max().unwrap_or(0);
        let lower = epochs.iter().filter(|(_, epoch)| *epoch < newest);
        let raise = Request::RaiseLock { key: key.clone(), owner: owner.clone(), epoch: newest };
        for raised in join_all(lower.map(|(index, _)| self.ask(*index, call, &raise))).await {
            raised?;
        }
        if epochs.is_empty() {
            return Err(Fault::new("ssh-unreachable", "none of the machines answers").transient());
        }
        Ok(newest)
    }

    /// Gives the lease back, where it can be.
    pub(super) async fn unlock_all(
        &self,
        call: Call<'_>,
        key: &LockKey,
        owner: &LockOwner,
    ) -> Result<(), Fault> {
        let request = Request::Unlock { key: key.clone(), owner: owner.clone() };
        let call = Call { deadline: call.deadline.min(LOCK_ANSWER), ..call };
        let everywhere = self.everywhere(&request);
        let answers =
            join_all(everywhere.iter().map(|(index, request)| self.ask(*index, call, request))).await;
        for answer in answers {
            match answer {
                // Its lease ends by itself.
                Err(fault) if is_away(&fault) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    /// Who holds the lease.
    pub(super) async fn lock_owner_of(
        &self,
        call: Call<'_>,
        key: &LockKey,
    ) -> Result<Option<LockState>, Fault> {
        let answers = self.ask_all(call, self.everywhere(&Request::LockOwner { key: key.clone() })).await?;
        Ok(answers.into_iter().find_map(|(_, answer)| match answer {
            Reply::Owner { owner } => owner,
            _ => None,
        }))
    }
}
