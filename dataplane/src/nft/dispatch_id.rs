//! What stands for a way to endpoints in the maps of Services: a number that is no verdict. Pure.

use std::fmt;

use model::stable_hash::fnv1a_32;

use super::elements::chain;
use crate::rules::ruleset::Way;

/// What stands for a way. A packet carries it as its class in queues, from the map that says it to the one that leads from
/// there to a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lead(pub u32);

impl Lead {
    /// What stands for this way: a hash (FNV-1a) of the name of its chain, the same on every node and in every run.
    ///
    /// A node has some ten ways, seldom a hundred: that two of them have the same number is as likely as one in a million.
    pub fn to(way: Way) -> Self {
        Self(fnv1a_32(chain(way).as_bytes()))
    }
}

impl fmt::Display for Lead {
    /// As `nft` prints a class.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{:x}", self.0 >> 16, self.0 & 0xffff)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::rules::ruleset::Pick;

    #[test]
    fn ways_that_are_common_are_told_apart() {
        let ways = (1..=250).flat_map(|count| {
            [None, Some(10_800)].into_iter().flat_map(move |affinity| {
                let pick = Pick { from: 0, count };
                [true, false].map(|restricted| Way { pick, restricted, affinity, ..Way::default() })
            })
        });
        let all: Vec<Way> = ways.collect();
        assert_eq!(all.iter().map(|way| Lead::to(*way)).collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn a_way_has_the_same_number_in_every_version() {
        assert_eq!(Lead::to(Way { pick: Pick { from: 0, count: 3 }, ..Way::default() }), Lead(0xb70c_5534));
    }

    #[test]
    fn it_is_written_as_a_class() {
        assert_eq!(Lead(0x0a70_4fab).to_string(), "a70:4fab");
        assert_eq!(Lead(0x0001_0000).to_string(), "1:0");
    }
}
