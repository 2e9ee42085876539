//! Messages of nf_tables: their types and attributes, from linux/netfilter/nf_tables.h. Pure.

use crate::nft::layout::Table;
use netlink::attribute::Writer;
use netlink::message::{APPEND, CREATE, Message, NFTABLES};

// enum nf_tables_msg_types.
pub(super) const NEWTABLE: u8 = 0;
pub(super) const GETTABLE: u8 = 1;
pub(super) const DELTABLE: u8 = 2;
pub(super) const NEWCHAIN: u8 = 3;
pub(super) const GETCHAIN: u8 = 4;
pub(super) const DELCHAIN: u8 = 5;
pub(super) const NEWRULE: u8 = 6;
pub(super) const GETRULE: u8 = 7;
pub(super) const NEWSET: u8 = 9;
pub(super) const GETSET: u8 = 10;
pub(super) const NEWSETELEM: u8 = 12;
pub(super) const GETSETELEM: u8 = 13;
pub(super) const DELSETELEM: u8 = 14;
pub(super) const GETGEN: u8 = 16;

pub(super) const GEN_ID: u16 = 1;
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
pub(super) const TABLE_USE: u16 = 3;
pub(super) const TABLE_USERDATA: u16 = 6;
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
pub(super) const HOOK_DEV: u16 = 3;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
pub(super) const SET_KEY_TYPE: u16 = 4;
pub(super) const SET_KEY_LEN: u16 = 5;
pub(super) const SET_DATA_TYPE: u16 = 6;
pub(super) const SET_DATA_LEN: u16 = 7;
pub(super) const SET_DESC: u16 = 9;
pub(super) const SET_DESC_SIZE: u16 = 1;
pub(super) const SET_DESC_CONCAT: u16 = 2;
pub(super) const SET_FIELD_LEN: u16 = 1;
pub(super) const SET_ID: u16 = 10;
pub(super) const SET_GC_INTERVAL: u16 = 12;
pub(super) const SET_USERDATA: u16 = 13;
pub(super) const SET_EXPR: u16 = 17;
pub(super) const ELEM_LIST_TABLE: u16 = 1;
pub(super) const ELEM_LIST_SET: u16 = 2;
pub(super) const ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const ELEM_KEY: u16 = 1;
pub(super) const ELEM_DATA: u16 = 2;
pub(super) const ELEM_EXPR: u16 = 7;
pub(super) const ELEM_KEY_END: u16 = 10;
/// An item of a list (NFTA_LIST_ELEM).
pub(super) const LIST_ITEM: u16 = 1;
/// The policy of base chains (NF_ACCEPT).
pub(super) const ACCEPT: u32 = 1;

/// The length in bytes at which a list of elements continues in another message. The length of an attribute is a number
/// of 16 bits, so it is at most 65,535. The largest element fits into the difference.
pub(super) const LIST_LIMIT: usize = 60_000;

/// A message of this type about a table.
pub(super) fn message(kind: u8, table: Table, fill: impl FnOnce(&mut Writer)) -> Message {
    let flags = match kind {
        NEWRULE => CREATE | APPEND,
        NEWTABLE | NEWCHAIN | NEWSET | NEWSETELEM => CREATE,
        _ => 0,
    };
    Message::new(NFTABLES, kind, flags, table.number(), fill)
}
