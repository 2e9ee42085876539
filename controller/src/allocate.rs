//! Which Service keeps, gets, shares or releases an address, or is refused one.
//!
//! | file | contents |
//! |---|---|
//! | `request` | the addresses a Service needs, by family |
//! | `allocation` | the decision for one Service |
//! | `obtain` | whether a Service can have one particular address |
//! | `adoption` | the former address of a Service that was restored, or that another provider served |
//! | `sharing` | which Services may share an address |
//! | `holders` | the update of a record that several Services hold |
//! | `quarantine` | addresses that another host on the LAN uses |
//! | `refusal` | why a Service gets no address, with the fix |

pub(crate) mod adoption;
pub(crate) mod allocation;
pub(crate) mod holders;
mod obtain;
pub(crate) mod quarantine;
pub(crate) mod refusal;
pub(crate) mod request;
pub(crate) mod sharing;
