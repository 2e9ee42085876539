//! A table as the kernel tells of it, and whether it is the one that we would make.

use std::collections::{BTreeMap, BTreeSet};

use super::{number, text};
use crate::netlink::attribute::Attributes;
use crate::nft::codec::expression::{Expression, is_counter};
use crate::nft::codec::request::*;
use crate::nft::codec::userdata;
use crate::nft::elements::{self, Key};
use crate::nft::layout::{self, COMMENT, Chain, Hook, Table};
use crate::nft::optional_chains::Hooked;
use crate::snapshot::LinkName;

/// A table as it is in the kernel, but for its elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Its flags: none, if it works.
    pub flags: u32,
    /// How many chains, sets and other objects are in it.
    pub used: u32,
    /// The comment on it.
    pub comment: Option<String>,
    /// Its sets and maps.
    pub sets: Vec<FoundSet>,
    /// The hooks of those chains that a skeleton has, where they exist; `None` for a chain without a hook, or with one
    /// we wouldn't make.
    pub chains: BTreeMap<String, Option<Hook>>,
    /// The rules of each chain that has some; `None` for a rule that we wouldn't make.
    pub rules: BTreeMap<String, Vec<Option<Vec<Expression>>>>,
}

/// A set or map as it is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FoundSet {
    name: String,
    flags: u32,
    key: Option<(u32, u32)>,
    data: Option<(u32, u32)>,
    counts: bool,
}

impl Found {
    /// The table in an answer, still without what is in it.
    pub fn table(answer: Attributes<'_>) -> Self {
        let comment = answer.find(TABLE_USERDATA).and_then(|notes| userdata::read_comment(notes.value));
        Self {
            flags: number(answer, TABLE_FLAGS).unwrap_or(0),
            used: number(answer, TABLE_USE).unwrap_or(0),
            comment: comment.map(str::to_owned),
            ..Self::default()
        }
    }

    /// What is wrong with it, in words; `Ok` with the chains that come and go with elements if nothing is.
    ///
    /// # Errors
    /// The first thing that is not as [`layout`] would have it.
    pub fn check(&self, table: Table) -> Result<BTreeSet<Key>, String> {
        if self.comment.as_deref() != Some(COMMENT) {
            return Err(format!("its comment is {:?}, so another version made it", self.comment.as_deref()));
        }
        if self.flags != 0 {
            return Err(format!("it has flags {:#x}", self.flags));
        }
        let mut expected: Vec<FoundSet> = layout::sets(table).iter().map(FoundSet::expected).collect();
        let mut sets = self.sets.clone();
        expected.sort();
        sets.sort();
        if let Some(set) = expected.iter().find(|set| !sets.contains(set)) {
            return Err(format!("set {} is not there as it should be", set.name));
        }
        let mut rules = self.rules.clone();
        let fixed = layout::chains(table);
        for chain in &fixed {
            if self.chains.get(&chain.name) != Some(&chain.hook) {
                return Err(format!("chain {} is not there as it should be", chain.name));
            }
            same_rules(&chain.name, rules.remove(&chain.name), &chain.rules)?;
        }
        let mut chains = BTreeSet::new();
        for (name, found) in rules {
            let (key, expected) = changing(table, &name).ok_or_else(|| format!("chain {name} should not be there"))?;
            if expected.hook.is_some() && self.chains.get(&name) != Some(&expected.hook) {
                return Err(format!("chain {name} is not there as it should be"));
            }
            same_rules(&name, Some(found), &expected.rules)?;
            chains.insert(key);
        }
        // What has neither rules nor a name that we know can only be counted.
        let objects = expected.len() + fixed.len() + chains.len();
        if usize::try_from(self.used) != Ok(objects) {
            return Err(format!("it has {} chains, sets and other objects instead of {objects}", self.used));
        }
        Ok(chains)
    }
}

/// A chain of this name that comes and goes with elements.
fn changing(table: Table, name: &str) -> Option<(Key, Chain)> {
    match table.family() {
        Some(family) => {
            let way = elements::way(name).map(|way| (Key::Way(family, way), layout::way(family, way)));
            let remember =
                || elements::remembers(name).map(|s| (Key::Remember(family, s), layout::remember(family, s)));
            let returns =
                || elements::returns(name).map(|one| (Key::Return(family, one), layout::returning(family, one)));
            let hooked = || Hooked::called(name).map(|one| (Key::Hooked(family, one), layout::hooked(family, one)));
            way.or_else(remember).or_else(returns).or_else(hooked)
        }
        None => elements::link(name).map(|link| (Key::Link(link), layout::ingress(link))),
    }
}

fn same_rules(
    name: &str,
    found: Option<Vec<Option<Vec<Expression>>>>,
    expected: &[Vec<Expression>],
) -> Result<(), String> {
    let found = found.unwrap_or_default();
    let same = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| f.as_ref() == Some(e));
    if same { Ok(()) } else { Err(format!("the rules of chain {name} are not as they should be")) }
}

impl FoundSet {
    /// The set in an answer.
    pub fn read(answer: Attributes<'_>) -> Self {
        let data = number(answer, SET_DATA_TYPE).map(|kind| (kind, number(answer, SET_DATA_LEN).unwrap_or(0)));
        Self {
            name: text(answer, SET_NAME).unwrap_or_default(),
            flags: number(answer, SET_FLAGS).unwrap_or(0),
            key: number(answer, SET_KEY_TYPE).zip(number(answer, SET_KEY_LEN)),
            // How long a verdict is, is the kernel's own business.
            data: data.map(|(kind, length)| (kind, if kind == layout::VERDICT { 0 } else { length })),
            counts: answer.find(SET_EXPR).is_some_and(|expression| is_counter(expression.inner())),
        }
    }

    fn expected(set: &layout::Set) -> Self {
        let key = Some((set.key_type(), set.key_length()));
        Self { name: set.name.to_owned(), flags: set.flags(), key, data: set.data(), counts: set.counts }
    }
}

/// The hook of the chain in an answer.
pub fn chain_hook(answer: Attributes<'_>) -> Option<Hook> {
    let hook = answer.find(CHAIN_HOOK)?.inner();
    let kind = answer.find(CHAIN_TYPE)?.text()?;
    (number(answer, CHAIN_POLICY) == Some(ACCEPT)).then_some(())?;
    Some(Hook {
        kind: ["nat", "filter", "route"].into_iter().find(|known| *known == kind)?,
        number: number(hook, HOOK_NUMBER)?,
        priority: number(hook, HOOK_PRIORITY)?.cast_signed(),
        link: match hook.find(HOOK_DEV) {
            Some(name) => Some(LinkName::new(name.text()?)?),
            None => None,
        },
    })
}

/// The rule in an answer: the name of its chain, and its expressions if we could have made them.
pub fn rule(answer: Attributes<'_>) -> Option<(String, Option<Vec<Expression>>)> {
    let expressions = answer.find(RULE_EXPRESSIONS).map(|list| list.inner().map(Expression::decode).collect());
    Some((text(answer, RULE_CHAIN)?, expressions.unwrap_or_default()))
}
