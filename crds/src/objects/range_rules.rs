//! The rules by which the API server checks addresses that users write, as CEL expressions in the schema.
//!
//! They use only functions of Kubernetes 1.30: API servers of 1.31, the oldest supported version, accept no newer ones
//! in a definition. The API server estimates the greatest cost of each rule, and refuses a definition whose rules are
//! too expensive. Four habits keep them cheap:
//!
//! - `split` has a limit. Without it, the result counts as one element for each character of the longest text.
//! - Parts of an address are compared as integers, and messages are formatted and not concatenated. The length of a
//!   computed string counts as unlimited.
//! - `a in [b]` compares addresses and networks. In Kubernetes 1.31 the estimate for `a == b` is unlimited.
//! - `[value].all(name, …)` gives a value a name.
//!
//! `containsCIDR` is not used: in Kubernetes 1.31 its result is wrong for some networks.

use kube::core::Rule;
use serde_json::{Value, json};

/// The networks whose addresses no Service can have: "this network" and the unspecified address, loopback, link-local
/// and multicast, as a list in CEL (RFC 6890, RFC 4291 §2.4).
const UNUSABLE: &str =
    "['0.0.0.0/8', '127.0.0.0/8', '169.254.0.0/16', '224.0.0.0/4', '::/32', 'fe80::/10', 'ff00::/8']";

/// The end of a message about [`UNUSABLE`] addresses.
const ARE_UNUSABLE: &str = "which no Service can use: unspecified, loopback, link-local or multicast";

/// The rules of a range, each with its message to the user. The API server evaluates all rules, even after one has
/// failed. So each rule accepts the values that an earlier rule refuses: the user gets one message.
pub(crate) fn for_range() -> Value {
    let is_range = "self.split('-', 2).all(end, isIP(end.trim()))";
    let family = "ip(end.trim()).family() == ip(self.split('-', 2)[0].trim()).family()";
    // An IPv6 address with dots: its last two groups are written like an IPv4 address.
    let is_dotted = "self.contains(':') && self.contains('.')";
    let numbers = numbers();
    // The first differing number of the two ends decides.
    let is_reversed = "[0, 1, 2, 3, 4, 5, 6, 7].exists(n, n < ends[0].size() && ends[1][n] < ends[0][n] \
                       && [0, 1, 2, 3, 4, 5, 6, 7].all(m, m >= n || ends[0][m] == ends[1][m]))";
    let unusable = format!("'%s' contains addresses {ARE_UNUSABLE}");
    json!([
        rule(
            &format!("self.contains('/') ? isCIDR(self) : {is_range}"),
            "'%s' is not a CIDR such as 192.0.2.0/28, a range such as 192.0.2.10-192.0.2.20 or an address",
            "self",
        ),
        rule(&format!("!{is_range} || self.split('-', 2).all(end, {family})"), "'%s' mixes IPv4 and IPv6", "self"),
        rule(
            &format!("!{is_range} || !self.contains('-') || ({is_dotted}) || ![{numbers}].exists(ends, {is_reversed})"),
            "'%s' ends before it begins",
            "self",
        ),
        rule(
            "!isCIDR(self) || cidr(self).masked() in [cidr(self)]",
            "'%s' has host bits set: write %s for the whole network, or %s for this address",
            "self, string(cidr(self).masked()), string(cidr(self).ip())",
        ),
        rule(
            &format!(
                "!isCIDR(self) || !{UNUSABLE}.exists(network, \
                 cidr(network).containsIP(cidr(self).masked().ip()) || cidr(self).containsIP(cidr(network).ip()))"
            ),
            &unusable,
            "self",
        ),
        rule(
            &format!(
                "!{is_range} || ({is_dotted}) || [{numbers}.map(end, end[0] * 65536 + end[1])].all(ends, \
                 {}.all(network, ends[ends.size() - 1] < network[0] || ends[0] > network[1]))",
                unusable_starts(),
            ),
            &unusable,
            "self",
        ),
    ])
}

/// A rule, and its message, in which the `values` in CEL replace each `%s`.
fn rule(rule: &str, message: &str, values: &str) -> Value {
    json!({"rule": rule, "messageExpression": format!("\"{message}\".format([{values}])")})
}

/// The two addresses of `first-last` as a list in CEL. Each address is a list of numbers: the eight groups of an IPv6
/// address, or the four octets of an IPv4 address. These lists are ordered like the addresses.
///
/// CEL reads decimal numbers only. So each part is filled up to four digits, and each digit is looked up. An octet is
/// read as if its digits were hexadecimal, too, which keeps the order. `::` is replaced by as many groups as are
/// missing: with `n` parts between colons, one of them empty, these are 9 - n.
fn numbers() -> String {
    let colons = "end.contains(':') ? end.replace('::', ':0:0:0:0:0:0:'.substring(0, 19 - 2 * end.split(':', 9).size())) \
                  : end.replace('.', ':')";
    let digit = |place: usize| {
        let weight = 1 << (12 - 4 * place);
        format!("'0123456789abcdef'.indexOf(digits.substring({place}, {})) * {weight}", place + 1)
    };
    let number = (0..4).map(digit).collect::<Vec<_>>().join(" + ");
    format!(
        "self.lowerAscii().split('-', 2).map(end, end.trim()).map(end, {colons}).map(end, end.split(':', 8)\
         .map(part, ('0000' + part).substring(part.size())).map(digits, {number}))"
    )
}

/// [`UNUSABLE`] in the form of [`numbers`], as a list in CEL: the first two numbers of the first address and of the
/// last address of each network.
fn unusable_starts() -> &'static str {
    "(self.contains('.') \
     ? [[0, 0x00000255], [0x01270000, 0x01270255], [0x01690254, 0x01690254], [0x02240000, 0x02390255]] \
     : [[0, 0], [0xfe800000, 0xfebfffff], [0xff000000, 0xffffffff]])"
}

/// The rule for a field with one address: it is not one of the [`UNUSABLE`] addresses.
pub(crate) fn usable_address() -> Rule {
    Rule::new(format!("!isIP(self) || !{UNUSABLE}.exists(network, cidr(network).containsIP(self))"))
        .message(format!("must not be an address {ARE_UNUSABLE}").as_str())
}
