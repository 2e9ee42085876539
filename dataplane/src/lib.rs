//! Forwarding: what the kernel must do with a packet to an address.
