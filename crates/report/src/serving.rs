//! What serves now: read from the routes that were observed, so that it is true whatever else went wrong.

use cdpipe_model::observe::{Role, RouteTable};
use cdpipe_model::program::Program;
use cdpipe_model::{EnvName, ReleaseId, ServiceName};
use std::collections::BTreeMap;

/// The releases that get traffic, by environment and service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Serving {
    shares: BTreeMap<(EnvName, ServiceName), Vec<Share>>,
    versions: BTreeMap<ReleaseId, String>,
}

/// One release's part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Share {
    /// Which.
    pub release: ReleaseId,
    /// Basis points.
    pub weight_bp: u32,
    /// Its part in the deploy.
    pub role: Role,
}

impl Serving {
    /// Learns the versions of a program's releases, and what served before it.
    pub fn programmed(&mut self, environment: &EnvName, program: &Program) {
        for spec in std::iter::once(&program.candidate).chain(&program.stable) {
            self.versions.insert(spec.id(), crate::words::release(spec));
        }
        let key = (environment.clone(), program.candidate.service.clone());
        if program.steps.is_empty() {
            let share = Share { release: program.candidate_id(), weight_bp: 10_000, role: Role::Stable };
            self.shares.insert(key, vec![share]);
        } else if let Some(table) = &program.seen.table {
            self.routed(environment, table);
        } else if let Some(stable) = &program.stable {
            let share = Share { release: stable.id(), weight_bp: 10_000, role: Role::Stable };
            self.shares.entry(key).or_insert_with(|| vec![share]);
        }
    }

    /// Takes over a table that was observed to be in force.
    pub fn routed(&mut self, environment: &EnvName, table: &RouteTable) {
        let shares = table
            .entries
            .iter()
            .map(|entry| Share {
                release: entry.release.clone(),
                weight_bp: entry.weight_bp,
                role: entry.role,
            })
            .collect();
        self.shares.insert((environment.clone(), table.service().clone()), shares);
    }

    /// A deploy without a router ended well: its candidate serves.
    pub fn deployed(&mut self, environment: &EnvName, program: &Program) {
        let share = Share { release: program.candidate_id(), weight_bp: 10_000, role: Role::Stable };
        self.shares.insert((environment.clone(), program.candidate.service.clone()), vec![share]);
    }

    /// A deploy without a router was taken back after it had ended well: what served before it serves again, if anything did.
    pub fn taken_back(&mut self, environment: &EnvName, program: &Program) {
        let key = (environment.clone(), program.candidate.service.clone());
        let before = program.stable.iter().map(|stable| Share {
            release: stable.id(),
            weight_bp: 10_000,
            role: Role::Stable,
        });
        self.shares.insert(key, before.collect());
    }

    /// Nobody can say what serves: a deploy without a router could not be taken back.
    pub fn unknown(&mut self, environment: &EnvName, program: &Program) {
        self.shares.remove(&(environment.clone(), program.candidate.service.clone()));
    }

    /// By environment and service; the releases with their shares, largest first. An empty list is a closed route.
    pub fn iter(&self) -> impl Iterator<Item = (&EnvName, &ServiceName, Vec<(String, &Share)>)> {
        self.shares.iter().map(|((environment, service), shares)| {
            let mut shares: Vec<(String, &Share)> = shares
                .iter()
                .filter(|share| share.weight_bp > 0)
                .map(|share| (self.version(&share.release), share))
                .collect();
            shares.sort_by_key(|(_, share)| std::cmp::Reverse(share.weight_bp));
            (environment, service, shares)
        })
    }

    /// What people call a release.
    pub fn version(&self, release: &ReleaseId) -> String {
        self.versions.get(release).cloned().unwrap_or_else(|| release.0.clone())
    }
}
