//! End-to-end scenarios on the lab.
