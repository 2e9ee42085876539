//! Dumps the kernel's tables. Touches nf_tables through the socket of the engine.

use std::collections::{BTreeMap, BTreeSet};

use super::outcome::KernelTable;
use super::{DUMP_ATTEMPTS, Engine, EngineError};
use crate::nft::chain_name::ChainName;
use crate::nft::codec::dump::{self, DumpedSet, DumpedTable};
use crate::nft::elements::Elements;
use crate::nft::layout::{self, Table};
use netlink::socket::NetlinkError;

impl Engine {
    /// Dumps all tables. Also returns their generation.
    ///
    /// # Errors
    /// If the kernel cannot be read.
    pub fn observe(&mut self) -> Result<(BTreeMap<Table, KernelTable>, u32), EngineError> {
        let mut attempt = 1;
        loop {
            let before = self.generation()?;
            let read = |table| Ok((table, self.read(table)?));
            let observed: Result<BTreeMap<_, _>, _> = Table::ALL.into_iter().map(read).collect();
            let after = self.generation()?;
            // A dump in several parts is consistent only if nothing changed meanwhile.
            if before == after || attempt >= DUMP_ATTEMPTS {
                return Ok((observed.map_err(EngineError::Read)?, before));
            }
            attempt += 1;
        }
    }

    pub(super) fn generation(&mut self) -> Result<u32, EngineError> {
        let answer = self.socket.query(dump::get_generation(), dump::decode_generation).map_err(EngineError::Read)?;
        Ok(answer.flatten().unwrap_or(0))
    }

    fn read(&mut self, table: Table) -> Result<KernelTable, NetlinkError> {
        let found = self.socket.query(dump::get_table(table), DumpedTable::decode);
        let Some(mut found) = none_if_missing(found)? else {
            return Ok(KernelTable::Absent);
        };
        found.sets = self.socket.dump(dump::get_sets(table), |body| Some(DumpedSet::decode(body.attributes())))?;
        for (chain, rule) in self.socket.dump(dump::get_rules(table), |body| dump::decode_rule(body.attributes()))? {
            found.rules.entry(chain).or_default().push(rule);
        }
        let fixed = layout::chains(table).into_iter().map(|chain| chain.name);
        let variable = found.rules.keys().filter(|name| table == Table::Link || may_be_base_chain(name)).cloned();
        for name in fixed.chain(variable).collect::<BTreeSet<_>>() {
            let hook = self.socket.query(dump::get_chain(table, &name), dump::decode_hook);
            if let Some(hook) = none_if_missing(hook)? {
                found.chains.insert(name, hook);
            }
        }
        let chains = match found.check(table) {
            Ok(chains) => chains,
            Err(why) => return Ok(KernelTable::Foreign(why)),
        };
        Ok(match self.read_elements(table, &chains)? {
            Some(elements) => KernelTable::Ours(elements),
            None => KernelTable::Foreign("it has elements that this version cannot decode".to_owned()),
        })
    }

    fn read_elements(&mut self, table: Table, chains: &BTreeSet<ChainName>) -> Result<Option<Elements>, NetlinkError> {
        let mut elements = Vec::new();
        for set in layout::sets(table).into_iter().filter(|set| set.dynamic.is_none()) {
            let query = dump::get_elements(table, set.id);
            elements.extend(self.socket.dump(query, |body| dump::decode_elements(table, &set, body.attributes()))?);
        }
        let elements = elements.into_iter().collect::<Option<Vec<_>>>();
        Ok(elements.map(|elements| dump::assemble(table, elements, chains)))
    }
}

/// Whether this name belongs to a chain of the IP tables that exists only while it is needed, and that has a hook.
fn may_be_base_chain(name: &str) -> bool {
    use ChainName::{MarkConnection, MarkForwardedReply, MarkLocalReply, Optional};
    matches!(ChainName::parse(name), Some(Optional(_) | MarkConnection(..) | MarkForwardedReply(_) | MarkLocalReply(_)))
}

/// The answer; `None` if the kernel reports that the object does not exist.
pub(in crate::nft) fn none_if_missing<T>(answer: Result<Option<T>, NetlinkError>) -> Result<Option<T>, NetlinkError> {
    match answer {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        other => other,
    }
}
