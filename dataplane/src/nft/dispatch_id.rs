//! The number of a dispatch chain in the maps `services` and `inside`: [`DispatchId`]. Pure.

use std::fmt;

use model::stable_hash::fnv1a_32;

use super::chain_name::ChainName;
use crate::rules::Dispatch;

/// The number of a [`Dispatch`] in `services` and `inside`. `meta priority` carries it from there to the map `ways`,
/// which leads to the chain.
///
/// The maps have no verdicts instead: at each change of a verdict that leads to a chain, the kernel walks all verdicts
/// of the table. That takes a hundred milliseconds with 30,000 Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DispatchId(pub u32);

impl DispatchId {
    /// A hash (FNV-1a) of the name of the chain, equal on every node and in every run.
    ///
    /// A node has some ten dispatches, seldom a hundred. Among a hundred, the chance that two have the same id is about
    /// one in a million.
    pub fn new(dispatch: Dispatch) -> Self {
        Self(fnv1a_32(ChainName::Dispatch(dispatch).to_string().as_bytes()))
    }
}

impl fmt::Display for DispatchId {
    /// As `nft` prints a `classid`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.0 >> 16, self.0 & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::rules::Pick;

    #[test]
    fn common_dispatches_have_different_ids() {
        let dispatches = (1..=250).flat_map(|count| {
            [None, Some(10_800)].into_iter().flat_map(move |affinity| {
                let pick = Pick { from: 0, count };
                [true, false].map(|restricted| Dispatch { pick, restricted, affinity, ..Dispatch::default() })
            })
        });
        let all: Vec<Dispatch> = dispatches.collect();
        assert_eq!(all.iter().map(|one| DispatchId::new(*one)).collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn a_dispatch_has_one_id_in_every_version() {
        let pick = Pick { from: 0, count: 3 };
        assert_eq!(DispatchId::new(Dispatch { pick, ..Dispatch::default() }), DispatchId(0xb70c_5534));
    }

    #[test]
    fn an_id_is_printed_as_a_classid() {
        assert_eq!(DispatchId(0x0a70_4fab).to_string(), "a70:4fab");
        assert_eq!(DispatchId(0x0001_0000).to_string(), "1:0");
    }
}
