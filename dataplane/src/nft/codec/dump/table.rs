//! A table as dumped by the kernel, and whether it has our layout.

use std::collections::{BTreeMap, BTreeSet};

use super::super::expression::{is_counter, is_rule};
use super::super::numbers::*;
use super::super::userdata;
use crate::link_name::LinkName;
use crate::nft::chain_name::ChainName;
use crate::nft::layout::{self, COMMENT, Chain, ChainRule, Hook, Set, Table, variable_chain};
use netlink::attribute::Attributes;

/// A table in the kernel, without its elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpedTable {
    /// 0 for an active table.
    pub flags: u32,
    /// The number of chains, sets and other objects in it.
    pub objects: u32,
    pub comment: Option<String>,
    pub sets: Vec<DumpedSet>,
    /// The hooks of the existing chains that our layout can have. `None`: a chain without a hook, or with one that our
    /// layout never has.
    pub chains: BTreeMap<String, Option<Hook>>,
    /// The rules of each chain that has some, each as its list of expressions.
    pub rules: BTreeMap<String, Vec<Vec<u8>>>,
}

/// A set or map in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DumpedSet {
    name: String,
    flags: u32,
    key: Option<(u32, u32)>,
    data: Option<(u32, u32)>,
    counter: bool,
}

impl DumpedTable {
    /// Reads the table in an answer, without its sets, chains and rules.
    pub fn decode(answer: Attributes<'_>) -> Self {
        let comment = answer.find(TABLE_USERDATA).and_then(|notes| userdata::decode_comment(notes.value));
        Self {
            flags: number(answer, TABLE_FLAGS).unwrap_or(0),
            objects: number(answer, TABLE_USE).unwrap_or(0),
            comment: comment.map(str::to_owned),
            ..Self::default()
        }
    }

    /// Compares it with our layout. Returns those of its chains that exist only while they are needed.
    ///
    /// # Errors
    /// The first difference, described.
    pub fn check(&self, table: Table) -> Result<BTreeSet<ChainName>, String> {
        if self.comment.as_deref() != Some(COMMENT) {
            return Err(format!("its comment is {:?}, so another version made it", self.comment.as_deref()));
        }
        if self.flags != 0 {
            return Err(format!("it has flags {:#x}", self.flags));
        }
        let mut expected: Vec<DumpedSet> = layout::sets(table).iter().map(DumpedSet::expected_for).collect();
        let mut sets = self.sets.clone();
        expected.sort();
        sets.sort();
        if let Some(set) = expected.iter().find(|set| !sets.contains(set)) {
            return Err(format!("set {} is missing or different", set.name));
        }
        let mut rules = self.rules.clone();
        let fixed = layout::chains(table);
        for chain in &fixed {
            if self.chains.get(&chain.name) != Some(&chain.hook) {
                return Err(format!("chain {} is missing or different", chain.name));
            }
            compare_rules(&chain.name, rules.remove(&chain.name), &chain.rules)?;
        }
        let mut chains = BTreeSet::new();
        for (name, rules) in rules {
            let (known, expected) = parse_chain(table, &name).ok_or_else(|| format!("chain {name} is unknown"))?;
            if expected.hook.is_some() && self.chains.get(&name) != Some(&expected.hook) {
                return Err(format!("chain {name} is different"));
            }
            compare_rules(&name, Some(rules), &expected.rules)?;
            chains.insert(known);
        }
        // Only the number of objects reveals unknown objects without rules.
        let objects = expected.len() + fixed.len() + chains.len();
        if usize::try_from(self.objects) != Ok(objects) {
            return Err(format!("it has {} chains, sets and other objects instead of {objects}", self.objects));
        }
        Ok(chains)
    }
}

/// The chain of this name, if it is a chain that exists only while it is needed.
fn parse_chain(table: Table, name: &str) -> Option<(ChainName, Chain)> {
    let known = ChainName::parse(name)?;
    Some((known, variable_chain(table, known)?))
}

fn compare_rules(name: &str, found: Option<Vec<Vec<u8>>>, expected: &[ChainRule]) -> Result<(), String> {
    let found = found.unwrap_or_default();
    let same = |(found, expected): (&Vec<u8>, &ChainRule)| is_rule(found, &expected.expressions);
    let all_same = found.len() == expected.len() && found.iter().zip(expected).all(same);
    if all_same { Ok(()) } else { Err(format!("the rules of chain {name} are different")) }
}

impl DumpedSet {
    pub fn decode(answer: Attributes<'_>) -> Self {
        let data = number(answer, SET_DATA_TYPE).map(|kind| (kind, number(answer, SET_DATA_LEN).unwrap_or(0)));
        Self {
            name: text(answer, SET_NAME).unwrap_or_default(),
            flags: number(answer, SET_FLAGS).unwrap_or(0),
            key: number(answer, SET_KEY_TYPE).zip(number(answer, SET_KEY_LEN)),
            // The kernel alone decides the length of a verdict.
            data: data.map(|(kind, length)| (kind, if kind == layout::VERDICT { 0 } else { length })),
            counter: answer.find(SET_EXPR).is_some_and(|expression| is_counter(expression.inner())),
        }
    }

    fn expected_for(set: &Set) -> Self {
        Self {
            name: set.name.to_owned(),
            flags: set.flags(),
            key: Some(set.key_type_and_length()),
            data: set.data_type_and_length(),
            counter: set.counter,
        }
    }
}

/// The hook of the chain in an answer.
pub fn decode_hook(answer: Attributes<'_>) -> Option<Hook> {
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

/// The rule in an answer: the name of its chain, and its list of expressions.
pub fn decode_rule(answer: Attributes<'_>) -> Option<(String, Vec<u8>)> {
    let expressions = answer.find(RULE_EXPRESSIONS).map(|list| list.value.to_vec());
    Some((text(answer, RULE_CHAIN)?, expressions.unwrap_or_default()))
}

fn number(attributes: Attributes<'_>, kind: u16) -> Option<u32> {
    attributes.find(kind)?.u32()
}

fn text(attributes: Attributes<'_>, kind: u16) -> Option<String> {
    attributes.find(kind)?.text().map(str::to_owned)
}
