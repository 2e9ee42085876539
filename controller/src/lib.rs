//! Allocation: which Service gets which address, and why not.
