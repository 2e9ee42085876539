//! Writes to the status of an address that this node announces it, after the fact.
//!
//! Only what differs is written, so an idle cluster sees no writes. A node writes itself in, and takes out only itself:
//! the successor's entry is the successor's to write. What can't be written now is tried again; the wire does not wait.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use crds::{Announcer, LoadBalancerIP, Record, address};
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use observe::{Listener, Store, source};
use serde_json::json;
use speaker::{Announcement, Announcements};
use tokio::sync::watch;
use tokio::time::timeout;

/// How many writes are under way at once: a node that takes over thousands of addresses reports them within seconds, and
/// does not hold up the API server for others.
const AT_ONCE: usize = 16;

/// How long to wait after a write has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How long to wait for an answer: the connection may be to a node that has just died.
const ANSWER: Duration = Duration::from_secs(10);

/// The reporter of one node.
pub(super) struct Report {
    client: Client,
    node: String,
    addresses: Store<IpAddr, Record>,
}

impl Report {
    pub(super) fn new(client: Client, node: String, addresses: Store<IpAddr, Record>) -> Self {
        Self { client, node, addresses }
    }

    /// Writes whatever differs, whenever something changed.
    pub(super) async fn run(
        self,
        mut announced: watch::Receiver<Announcements>,
        mut listener: Listener,
    ) -> Result<Infallible> {
        loop {
            let announcements = announced.borrow_and_update().clone();
            let records = self.addresses.snapshot().unwrap_or_default();
            let wanted = differences(&self.node, &announcements, &records);
            let writes = futures::stream::iter(wanted).map(|write| self.write(write)).buffer_unordered(AT_ONCE);
            let failed = writes.fold(false, |failed, ok| std::future::ready(failed || !ok)).await;
            tokio::select! {
                () = listener.woken() => {}
                changed = announced.changed() => if changed.is_err() {
                    // The speaker has left, and so will the process in a moment.
                    return std::future::pending().await;
                },
                () = tokio::time::sleep(PAUSE), if failed => {}
            }
        }
    }

    /// Writes one, and says whether nothing is left to do for it.
    async fn write(&self, (lb_ip, announcers): (IpAddr, Vec<Announcer>)) -> bool {
        let addresses: Api<LoadBalancerIP> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"status": {"announcers": announcers}}));
        let name = address::name(lb_ip);
        let params = PatchParams::default();
        let Ok(answer) = timeout(ANSWER, addresses.patch_status(&name, &params, &patch)).await else {
            tracing::warn!(%lb_ip, "the API server does not answer; reporting who announces it again");
            return false;
        };
        match answer {
            Ok(object) => {
                if let Some((observation, _)) = source::addresses().observe(&object) {
                    self.addresses.put(observation);
                }
                true
            }
            // Gone meanwhile: there is nothing to say about it.
            Err(kube::Error::Api(status)) if status.code == 404 => true,
            Err(error) => {
                tracing::warn!(%lb_ip, %error, "can't report who announces it; trying again");
                false
            }
        }
    }
}

/// What is to be written: for each address whose status is not what this node knows, its new list of announcers.
fn differences(
    node: &str,
    announcements: &Announcements,
    records: &BTreeMap<IpAddr, Arc<Record>>,
) -> Vec<(IpAddr, Vec<Announcer>)> {
    let mut differences = Vec::new();
    for (lb_ip, record) in records {
        let own: Vec<Announcer> =
            announcements.get(lb_ip).into_iter().flatten().map(|announcement| announcer(node, announcement)).collect();
        let written: Vec<&Announcer> = record.announcers.iter().filter(|announcer| announcer.node == node).collect();
        // `since` is when this process took it: after a restart with the same epoch, what is written there holds.
        let place = |announcer: &Announcer| (announcer.link.clone(), announcer.epoch);
        let said: Vec<_> = written.iter().map(|announcer| place(announcer)).collect();
        if own.iter().map(place).collect::<Vec<_>>() == said {
            continue;
        }
        // A greater epoch, or the same one taken later (by the last of two nodes), has taken the address over from
        // whoever had it. Links are not compared: the same LAN may have another name on another node.
        let taken = |other: &Announcer| own.iter().any(|own| (own.epoch, own.since.0) > (other.epoch, other.since.0));
        let others = record.announcers.iter().filter(|other| other.node != node && !taken(other));
        differences.push((*lb_ip, own.iter().chain(others).cloned().collect()));
    }
    differences
}

fn announcer(node: &str, announcement: &Announcement) -> Announcer {
    Announcer {
        node: node.to_owned(),
        link: announcement.link.clone(),
        epoch: i64::try_from(announcement.epoch).unwrap_or(i64::MAX),
        since: Time(announcement.since),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LB_IP: [u8; 4] = [192, 0, 2, 200];

    fn entry(node: &str, epoch: i64) -> Announcer {
        Announcer { node: node.into(), link: "eth0".into(), epoch, since: Time(jiff::Timestamp::UNIX_EPOCH) }
    }

    /// What node `me` writes when it announces with `own` epoch, and `written` stands in the status.
    fn written(own: Option<u64>, written: &[Announcer]) -> Option<Vec<Announcer>> {
        // Later than what is written already.
        let since = jiff::Timestamp::from_second(1).expect("in range");
        let announcement = |epoch| Announcement { link: "eth0".into(), epoch, since };
        let announcements = own.map(|epoch| (LB_IP.into(), vec![announcement(epoch)])).into_iter().collect();
        let record = Record {
            address: LB_IP.into(),
            uid: String::new(),
            resource_version: String::new(),
            deleting: false,
            pool: "lan".into(),
            holders: vec![],
            sharing_key: None,
            reservation: None,
            announcers: written.to_vec(),
        };
        let records = [(LB_IP.into(), Arc::new(record))].into();
        let (_, mut announcers) = differences("me", &announcements, &records).pop()?;
        // Whether it is this node's is told by its name.
        announcers.iter_mut().for_each(|announcer| announcer.since = Time(jiff::Timestamp::UNIX_EPOCH));
        Some(announcers)
    }

    #[test]
    fn a_node_writes_itself_in_and_out_and_nothing_that_is_there_already() {
        let (me, other) = (|epoch| entry("me", epoch), |epoch| entry("other", epoch));
        for (own, before, after) in [
            (None, vec![], None),
            (None, vec![other(3)], None),
            (Some(3), vec![me(3)], None),
            (Some(3), vec![], Some(vec![me(3)])),
            (Some(3), vec![me(2)], Some(vec![me(3)])),
            (Some(3), vec![other(2)], Some(vec![me(3)])),
            (Some(3), vec![other(4)], Some(vec![me(3), other(4)])),
            (Some(4), vec![other(4)], Some(vec![me(4)])),
            (None, vec![me(3)], Some(vec![])),
            (None, vec![me(3), other(4)], Some(vec![other(4)])),
        ] {
            assert_eq!(written(own, &before), after, "{own:?} on {before:?}");
        }
    }
}
