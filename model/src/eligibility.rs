//! Which nodes may announce an lb_ip.
//!
//! [`Cluster`] → an [`AnnouncementPolicy`] for each address. There is one decision per address, for all Services that
//! hold it. Separate decisions per Service could contradict each other.
//!
//! A node is a candidate for an address if
//!
//! 1. it exists and has no label that excludes it from load balancers;
//! 2. advertisements let it announce for a Service that holds the address ([`Advertisements`]) and, if the traffic
//!    policy of the Service is Local, it has an endpoint of the Service;
//! 3. no other node satisfies 1 and 2 for more of these Services;
//! 4. it has no [`crds::DrainReason`], or all nodes that satisfy 1 to 3 have one.
//!
//! Rule 4 never leaves an address without a candidate. A drained node keeps an address that only this node may
//! announce: if only this node runs the pods of a Service, they must move first, and the address moves with them.
//!
//! Whether a node is alive, forwards the address, and has the link that an advertisement names is not decided here:
//! speakers exchange that over the links.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crds::Record;

use crate::SharedMap;
use crate::cluster::{Affected, Cluster};

mod advertisements;
mod candidates;
mod rules;
#[cfg(test)]
mod tests;
mod why_not;

pub use candidates::{AnnouncementPolicy, Candidate, Candidates, Links};
pub use why_not::{NoCandidateReason, why_not};

use rules::{Rules, View};

/// The announcement policy of each address that a Service holds, kept up to date.
#[derive(Debug, Default)]
pub struct Eligibility {
    policies: SharedMap<IpAddr, AnnouncementPolicy>,
    /// Equal sets of candidates are stored once: there may be as many addresses as Services, and a set names most
    /// nodes.
    sets: BTreeSet<Arc<Candidates>>,
    /// If there are more sets than this, unused ones are removed.
    limit: usize,
}

/// The least `limit` after a removal of unused sets.
const FEW_SETS: usize = 64;

impl Eligibility {
    /// The policy of each address that a Service holds.
    ///
    /// An address has no policy if it is only reserved, or if none of its holders exists: they were deleted, or other
    /// Services have their names now.
    pub fn policies(&self) -> &SharedMap<IpAddr, AnnouncementPolicy> {
        &self.policies
    }

    /// Updates the policies of the `affected` addresses.
    pub fn update(&mut self, cluster: &Cluster, affected: &Affected) {
        if affected.nodes || affected.pools || affected.advertisements {
            let mut rules = Rules::new(View::new(cluster));
            self.policies = SharedMap::default();
            for (lb_ip, record) in cluster.records().iter() {
                self.decide(*lb_ip, Some(record), &mut rules);
            }
        } else if !affected.lb_ips.is_empty() {
            let mut rules = Rules::new(View::new(cluster));
            for lb_ip in &affected.lb_ips {
                self.decide(*lb_ip, cluster.records().get(lb_ip), &mut rules);
            }
        }
        if self.sets.len() > self.limit {
            self.sets.retain(|set| Arc::strong_count(set) > 1);
            self.limit = (self.sets.len() * 2).max(FEW_SETS);
        }
    }

    fn decide<'a>(&mut self, lb_ip: IpAddr, record: Option<&'a Arc<Record>>, rules: &mut Rules<'a>) {
        let decided = record.and_then(|record| Some((record, rules.candidates(record)?)));
        let Some((record, candidates)) = decided else {
            self.policies.remove(&lb_ip);
            return;
        };
        let candidates = self.sets.get(&candidates).cloned().unwrap_or_else(|| {
            self.sets.insert(Arc::clone(&candidates));
            candidates
        });
        let policy = AnnouncementPolicy { candidates, epoch: greatest_epoch(record) };
        if self.policies.get(&lb_ip) != Some(&policy) {
            self.policies.insert(lb_ip, policy);
        }
    }
}

/// The greatest epoch in the reports of the announcers.
fn greatest_epoch(record: &Record) -> u64 {
    let epochs = record.announcers.iter().filter_map(|announcer| u64::try_from(announcer.epoch).ok());
    epochs.max().unwrap_or(0)
}
