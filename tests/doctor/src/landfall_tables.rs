//! The tables of Landfall as the engine writes them, in messages to nf_tables. Scripts for `nft` cannot replace them: a
//! kernel may refuse an expression that the engine writes and that `nft` never writes.
//!
//! A test of the dataplane writes the golden file, and compares it with the messages of the engine. Numbers in the file
//! are little-endian, as on all machines that Landfall supports.

use std::io;
use std::os::fd::AsRawFd;

use netns::Namespace;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::check::Check;
use crate::kernel::describe_trial;
use crate::resources::is_root;
use crate::tools::is_installed;

const GOLDEN: &str = include_str!("../../../dataplane/tests/golden/requests.hex");

/// The subsystem of nf_tables, and the messages around a transaction (linux/netfilter/nfnetlink.h).
const NFTABLES: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// Flags of a netlink message.
const REQUEST: u16 = 1;
const ACK: u8 = 4;
/// The length of a netlink header, and the places of the flags and the sequence number in it.
const HEADER: usize = 16;
const FLAGS: usize = 6;
const SEQUENCE: usize = 8;
/// The family of the tables for frames (NFPROTO_NETDEV). The netfilter header begins with the family.
const NETDEV: u8 = 5;
/// The longest wait for an answer. It should never elapse, because the kernel answers before the sending call returns.
const TIMEOUT: TimeVal = TimeVal::new(5, 0);

/// A message of the golden file.
struct Request {
    /// `add rule 1 of chain count of ip landfall`.
    subject: String,
    bytes: Vec<u8>,
}

/// Checks the tables that translate packets, and the one that re-sends frames.
pub(crate) fn checks() -> [Check; 2] {
    let may_try = is_root() && is_installed("ip") && cfg!(target_endian = "little");
    let check = |subject, needed, option, is_wanted: fn(&Request) -> bool| {
        let result = may_try.then(|| program(requests(GOLDEN).into_iter().filter(is_wanted).collect()));
        describe_trial(subject, needed, option, result)
    };
    [
        check(
            "tables of Landfall",
            "to translate packets",
            "the parts above; if it has them, report this line",
            |it| !is_about_frames(it),
        ),
        check("frames of Landfall", "to spread frames; without it, Landfall translates", "the same", is_about_frames)
            .optional(),
    ]
}

fn is_about_frames(request: &Request) -> bool {
    request.bytes.get(HEADER) == Some(&NETDEV)
}

/// Reads a golden file: lines with a subject, and below each the bytes of its message in hexadecimal, indented.
fn requests(golden: &str) -> Vec<Request> {
    let mut requests: Vec<Request> = Vec::new();
    for line in golden.lines() {
        let Some(digits) = line.strip_prefix("  ") else {
            requests.push(Request { subject: line.to_owned(), bytes: Vec::new() });
            continue;
        };
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("invariant: hexadecimal digits");
        let bytes = (0..digits.len()).step_by(2).map(byte);
        requests.last_mut().expect("invariant: a subject comes first").bytes.extend(bytes);
    }
    requests
}

/// Executes the requests as one transaction, in a new network namespace with an interface eth0.
fn program(requests: Vec<Request>) -> io::Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip(["link add eth0 type veth peer name peer0"])?;
    namespace.run(|| transact(&requests))
}

/// Sends the requests as one transaction, in the network namespace of this thread. The error names the first refused
/// request.
fn transact(requests: &[Request]) -> io::Result<()> {
    let (netlink, netfilter) = (AddressFamily::Netlink, SockProtocol::NetlinkNetFilter);
    let socket = socket(netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, netfilter)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TIMEOUT)?;
    send(socket.as_raw_fd(), &transaction(requests), MsgFlags::empty())?;
    let mut datagram = [0; 1 << 16];
    loop {
        let length = recv(socket.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
        let (number, errno) = read_answer(&datagram[..length])?;
        if errno != 0 {
            let refused = requests.get(number).map_or("the transaction", |request| request.subject.as_str());
            return Err(io::Error::other(format!("{refused}: {}", io::Error::from_raw_os_error(errno))));
        }
        if number + 1 == requests.len() {
            return Ok(());
        }
    }
}

/// The requests between the beginning and the end of a transaction. Sequence numbers are indexes. The kernel answers
/// each request that it refuses, and the last one in any case.
fn transaction(requests: &[Request]) -> Vec<u8> {
    let end = u32::try_from(requests.len()).unwrap_or(u32::MAX);
    let mut bytes = boundary(BATCH_BEGIN, end);
    for (number, request) in (0..).zip(requests) {
        let start = bytes.len();
        bytes.extend_from_slice(&request.bytes);
        bytes[start + SEQUENCE..start + HEADER - 4].copy_from_slice(&u32::to_ne_bytes(number));
        if number + 1 == end {
            bytes[start + FLAGS] |= ACK;
        }
    }
    bytes.extend(boundary(BATCH_END, end));
    bytes
}

/// The message that begins or ends a transaction.
fn boundary(kind: u16, sequence: u32) -> Vec<u8> {
    // Netlink header: length, type, flags, sequence, sender. Netfilter header: family, version, subsystem.
    let mut bytes = 20_u32.to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(REQUEST.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 6]);
    bytes.extend(NFTABLES.to_be_bytes());
    bytes
}

/// The index of the answered request, and the errno; 0 if it succeeded.
fn read_answer(datagram: &[u8]) -> io::Result<(usize, i32)> {
    let number = |at: usize| Some(u32::from_ne_bytes(*datagram.get(at..)?.first_chunk()?));
    let numbers = (number(SEQUENCE), number(HEADER));
    let (Some(sequence), Some(code)) = numbers else { return Err(io::Error::other("a truncated answer")) };
    Ok((usize::try_from(sequence).unwrap_or(usize::MAX), -code.cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;

    #[test]
    fn this_kernel_accepts_the_tables() {
        for check in checks() {
            assert_eq!(check.outcome, Outcome::Ok, "{}", check.line());
        }
    }

    /// With a wrong name of an expression, the kernel refuses the rule.
    #[test]
    fn a_refused_rule_is_reported_by_its_place() {
        let mut requests = requests(GOLDEN);
        let is_rule = |request: &Request| request.subject == "add rule 1 of chain count of ip landfall";
        let at = requests.iter().position(is_rule).expect("a rule");
        let bytes = &mut requests[at].bytes;
        let name = bytes.windows(8).position(|bytes| bytes == b"payload\0").expect("an expression");
        bytes[name] = b'P';
        let error = program(requests).expect_err("there is no such expression").to_string();
        assert_eq!(error, "add rule 1 of chain count of ip landfall: No such file or directory (os error 2)");
    }

    #[test]
    fn both_kinds_of_tables_are_programmed() {
        let (frames, packets): (Vec<_>, Vec<_>) = requests(GOLDEN).into_iter().partition(is_about_frames);
        for (kind, requests) in [("frames", frames), ("packets", packets)] {
            let count = |what: &str| requests.iter().filter(|request| request.subject.starts_with(what)).count();
            let counts = ["add table", "add set", "add chain", "add rule"].map(count);
            assert!(counts.iter().all(|count| *count > 0), "{kind}: {counts:?}");
        }
    }
}
