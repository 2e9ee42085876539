//! Services that wait for an address, and the changes that wake them.
//!
//! A change concerns addresses of one family, or one sharing key. It wakes only the Services that wait for such an
//! address. Otherwise each change could wake all Services: on a dual-stack cluster with IPv4 pools, all may wait for an
//! optional IPv6 address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crds::Key;
use crds::service::Family;

use super::{ClusterIndex, set_member};
use crate::allocate::sharing;
use crate::pools::intervals::FAMILIES;

impl ClusterIndex {
    /// Replaces the families for which a Service waits.
    pub(crate) fn set_waiting(&mut self, key: &Key, families: &[Family]) {
        for family in FAMILIES {
            set_member(&mut self.waiting[family], key, families.contains(&family));
        }
    }

    pub(crate) fn is_waiting(&self, key: &Key) -> bool {
        FAMILIES.iter().any(|family| self.waiting[*family].contains(key))
    }

    /// Takes the reasons to wake waiting Services, and returns the Services that they wake.
    pub(crate) fn take_woken(&mut self) -> BTreeSet<Key> {
        let families = std::mem::take(&mut self.dirty.waiting);
        let sharing_keys = std::mem::take(&mut self.dirty.sharing_keys);
        let mut woken = BTreeSet::new();
        for family in FAMILIES {
            let waiting = self.waiting[family].iter();
            if families[family] {
                woken.extend(waiting.cloned());
            } else if !sharing_keys.is_empty() {
                let key_of = |key: &Key| sharing::key(self.objects.services().get(key)?);
                woken.extend(waiting.filter(|key| key_of(key).is_some_and(|own| sharing_keys.contains(own))).cloned());
            }
        }
        woken
    }

    /// Wakes the Services that wait for an address of the family of this one.
    pub(super) fn wake_waiting(&mut self, lb_ip: IpAddr) {
        self.dirty.waiting[Family::from(lb_ip)] = true;
    }
}
