//! Compares a rule in the kernel's dump with an expected one: [`is_rule`]. Pure.
//!
//! A dump differs from the message that created the rule: the kernel omits some attributes that are 0, and adds others.

use super::Expression;
use super::numbers::*;
use netlink::attribute::{Attribute, Attributes, Writer, attributes};

/// Whether a list of expressions in the kernel's dump consists of the expected ones.
pub fn is_rule(found: &[u8], expected: &[Expression]) -> bool {
    let mut written = Writer::default();
    expected.iter().for_each(|expression| expression.encode(&mut written));
    let written = written.finish();
    let found: Vec<_> = attributes(found).filter(|found| !is_without_effect(*found)).collect();
    let pairs = || found.iter().zip(attributes(&written));
    found.len() == expected.len() && pairs().all(|(found, written)| is_expression(*found, written))
}

/// Whether an expression changes the order of less than one unit in place. `nft` writes such an expression behind a
/// protocol, which is one byte, before a lookup in an interval set. Kernels since 6.12.115 refuse it ("nft_byteorder:
/// remove multi-register support"), so Landfall does not write it.
fn is_without_effect(found: Attribute<'_>) -> bool {
    let Some(("byteorder", data)) = name_and_data(found) else { return false };
    let number = |kind| data.find(kind).and_then(|attribute| attribute.u32());
    let (from, to) = (number(BYTEORDER_SREG), number(BYTEORDER_DREG));
    from.is_some() && from == to && number(BYTEORDER_LEN) < number(BYTEORDER_SIZE)
}

fn is_expression(found: Attribute<'_>, written: Attribute<'_>) -> bool {
    let (Some((name, found)), Some((expected, written))) = (name_and_data(found), name_and_data(written)) else {
        return false;
    };
    let is_complete = |attribute: Attribute<'_>| match found.find(attribute.kind) {
        Some(_) => has(found, attribute),
        None => may_be_omitted(name, &attribute),
    };
    let is_known =
        |attribute: Attribute<'_>| written.find(attribute.kind).is_some() || !changes_meaning(name, &attribute, found);
    name == expected && { written }.all(is_complete) && { found }.all(is_known)
}

fn name_and_data(item: Attribute<'_>) -> Option<(&str, Attributes<'_>)> {
    Some((item.inner().find(NAME)?.text()?, item.inner().find(DATA)?.inner()))
}

/// Whether `found` contains this attribute, with all attributes inside it.
fn has(found: Attributes<'_>, written: Attribute<'_>) -> bool {
    found.find(written.kind).is_some_and(|found| {
        if written.is_nested {
            written.inner().all(|inner| has(found.inner(), inner))
        } else {
            found.value == written.value
        }
    })
}

/// Whether the kernel omits this attribute: it is 0, and optional in a dump.
fn may_be_omitted(name: &str, attribute: &Attribute<'_>) -> bool {
    let may_be = match name {
        "payload" => [PAYLOAD_CSUM_TYPE, PAYLOAD_CSUM_OFFSET, PAYLOAD_CSUM_FLAGS].contains(&attribute.kind),
        "exthdr" => attribute.kind == EXTHDR_OP,
        "hash" => [HASH_OFFSET, HASH_TYPE].contains(&attribute.kind),
        "numgen" => attribute.kind == NUMGEN_OFFSET,
        "reject" => attribute.kind == REJECT_CODE,
        _ => false,
    };
    may_be && attribute.value.iter().all(|byte| *byte == 0)
}

/// Whether this attribute of the dump, which was not written, changes the meaning of the expression `found`. All other
/// such attributes are ignored, since a later kernel may add some.
fn changes_meaning(name: &str, attribute: &Attribute<'_>, found: Attributes<'_>) -> bool {
    let differs_from = |kind: u16| found.find(kind).is_none_or(|other| other.value != attribute.value);
    match (name, attribute.kind) {
        ("lookup", LOOKUP_DREG)
        | ("ct", CT_DIRECTION)
        | ("dynset", DYNSET_SREG_DATA | DYNSET_EXPR)
        | ("redir", REDIR_REG_PROTO_MIN) => true,
        ("lookup", LOOKUP_FLAGS) | ("dynset", DYNSET_FLAGS) | ("redir", REDIR_FLAGS) | ("bitwise", BITWISE_OP) => {
            attribute.u32() != Some(0)
        }
        ("nat", NAT_FLAGS) => attribute.u32() != Some(NAT_IMPLIED),
        ("nat", NAT_REG_ADDR_MAX) => differs_from(NAT_REG_ADDR_MIN),
        ("nat", NAT_REG_PROTO_MAX) => differs_from(NAT_REG_PROTO_MIN),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::codec::tests::all_chains;

    /// The expressions of every rule, and the same in a message.
    fn all_rules() -> Vec<(Vec<Expression>, Vec<u8>)> {
        let rules = all_chains().into_iter().flat_map(|chain| chain.rules);
        let encoded = |rule: Vec<Expression>| {
            let mut list = Writer::default();
            rule.iter().for_each(|expression| expression.encode(&mut list));
            (rule, list.finish())
        };
        rules.map(|rule| encoded(rule.expressions)).collect()
    }

    #[test]
    fn a_rule_equals_only_itself() {
        let rules = all_rules();
        for (rule, _) in &rules {
            for (other, dumped) in &rules {
                assert_eq!(is_rule(dumped, rule), rule == other, "{rule:?}, {other:?}");
            }
        }
    }

    #[test]
    fn only_a_change_of_byte_order_without_effect_is_ignored() {
        for (from, to, length, size, expected) in
            [(9, 9, 1, 2, true), (9, 9, 2, 2, false), (9, 9, 4, 2, false), (9, 8, 1, 2, false)]
        {
            let mut dumped = Writer::default();
            Expression::LoadZero.encode(&mut dumped);
            dumped.nest(ITEM, |item| {
                item.text(NAME, "byteorder").nest(DATA, |data| {
                    data.u32(BYTEORDER_SREG, from).u32(BYTEORDER_DREG, to);
                    data.u32(BYTEORDER_LEN, length).u32(BYTEORDER_SIZE, size);
                });
            });
            assert_eq!(is_rule(&dumped.finish(), &[Expression::LoadZero]), expected, "{from} {to} {length} {size}");
        }
    }

    /// Copies attributes, but without the one with the number `skipped`. `next` is the number of the first one; an
    /// attribute is numbered before those inside it.
    fn copy_without(skipped: usize, from: Attributes<'_>, next: &mut usize, to: &mut Writer) {
        for attribute in from {
            let number = *next;
            *next += 1;
            if attribute.is_nested && number != skipped {
                to.nest(attribute.kind, |inner| copy_without(skipped, attribute.inner(), next, inner));
            } else if number != skipped {
                to.bytes(attribute.kind, attribute.value);
            }
        }
    }

    /// Copies attributes, but with another value of the one with the number `changed`.
    fn copy_with_change(changed: usize, from: Attributes<'_>, next: &mut usize, to: &mut Writer) {
        for attribute in from {
            let number = *next;
            *next += 1;
            if attribute.is_nested {
                to.nest(attribute.kind, |inner| copy_with_change(changed, attribute.inner(), next, inner));
            } else {
                let mut value = attribute.value.to_vec();
                if let Some(byte) = value.first_mut().filter(|_| number == changed) {
                    *byte ^= 1;
                }
                to.bytes(attribute.kind, &value);
            }
        }
    }

    #[test]
    fn a_changed_or_missing_attribute_makes_another_rule() {
        for (rule, dumped) in all_rules() {
            let mut count = 0;
            copy_without(usize::MAX, attributes(&dumped), &mut count, &mut Writer::default());
            for number in 0..count {
                let (mut without, mut changed) = (Writer::default(), Writer::default());
                copy_without(number, attributes(&dumped), &mut 0, &mut without);
                copy_with_change(number, attributes(&dumped), &mut 0, &mut changed);
                let (without, changed) = (without.finish(), changed.finish());
                assert!(changed == dumped || !is_rule(&changed, &rule), "{rule:?}: {number} changed");
                // The only optional attributes are 0: see `may_be_omitted`.
                let is_optional = rule.iter().any(|expression| {
                    use Expression::*;
                    matches!(
                        expression,
                        ExthdrFragment { .. }
                            | Jhash { .. }
                            | Numgen { .. }
                            | SetLinkHeader { .. }
                            | SetDestination(_)
                            | SetPort { .. }
                            | SetHopLimit(_)
                            | SetPortUnchecked
                            | RejectReset
                    )
                });
                assert!(is_optional || !is_rule(&without, &rule), "{rule:?} without {number}");
            }
        }
    }

    #[test]
    fn the_kernel_may_add_only_attributes_without_effect() {
        let accepts = |kind: u16, value: u32, name: &str| {
            let mut list = Writer::default();
            let expression = match name {
                "lookup" => Expression::Lookup { set: "own".into(), into: None },
                "redir" => Expression::Redirect,
                "bitwise" => Expression::Mask(vec![1]),
                "nat" => Expression::Dnat(crds::service::Family::V4),
                _ => Expression::DynsetCount { set: "denied".into(), seconds: 1 },
            };
            expression.encode(&mut list);
            let list = list.finish();
            let data = attributes(&list).next().and_then(|item| item.inner().find(DATA)).expect("data");
            let mut dumped = Writer::default();
            dumped.nest(ITEM, |item| {
                item.text(NAME, name).nest(DATA, |inner| {
                    inner.append(&Writer::append_to(data.value.to_vec()));
                    inner.u32(kind, value);
                });
            });
            is_rule(&dumped.finish(), &[expression])
        };
        for (name, kind, value, expected) in [
            ("lookup", LOOKUP_FLAGS, 0, true),
            ("lookup", LOOKUP_FLAGS, 1, false),
            ("lookup", LOOKUP_DREG, 0, false),
            ("lookup", 99, 1, true),
            ("redir", REDIR_FLAGS, 0, true),
            ("redir", REDIR_FLAGS, 4, false),
            ("redir", REDIR_REG_PROTO_MIN, 1, false),
            ("bitwise", BITWISE_OP, 0, true),
            ("bitwise", BITWISE_OP, 1, false),
            ("nat", NAT_FLAGS, NAT_IMPLIED, true),
            ("nat", NAT_FLAGS, NAT_IMPLIED | 4, false),
            ("nat", NAT_REG_ADDR_MAX, 1, true),
            ("nat", NAT_REG_ADDR_MAX, 2, false),
            ("dynset", DYNSET_FLAGS, 0, true),
            ("dynset", DYNSET_FLAGS, 1, false),
            ("dynset", DYNSET_SREG_DATA, 1, false),
        ] {
            assert_eq!(accepts(kind, value, name), expected, "{name} {kind} {value}");
        }
    }
}
