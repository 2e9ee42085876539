//! Announcing: who is alive on the wire, who owns which address, ARP.
