//! The observed objects, with their indexes and the keys that a change makes dirty.
//!
//! | file | contents |
//! |---|---|
//! | `index` | all objects by key, the indexes derived from them, and the dirty keys |
//! | `record` | facts that follow from one record alone |
//! | `stores` | the watched tables that feed the index |

pub(crate) mod index;
pub(crate) mod record;
pub(crate) mod refused_write;
pub(crate) mod stores;
