//! Watching the API server into tables of typed views.
//!
//! ```text
//! API server --list, watch--> watch --> Table (in a Store) --wake--> whoever plans
//!                                          ^                            |
//!                                          +---- answers to its writes -+
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`table`] | what is known of the objects of one kind; it never goes back to something older |
//! | [`source`] | how objects become entries of a table, for each kind that Landfall watches |
//! | [`store`] | a table that several tasks share, and the [`Wake`] that tells them of changes |
//! | [`watch`](mod@watch), `backoff` | the list and the watch that feed a store, and when they are tried again |
//!
//! ```no_run
//! # async fn example(client: kube::Client) {
//! let wake = observe::Wake::default();
//! let services = observe::Store::new(&wake);
//! let mut watches = tokio::task::JoinSet::new();
//! watches.spawn(observe::watch(client.clone(), observe::source::services(), services.clone()));
//! let mut listener = wake.listener();
//! loop {
//!     if let Some(services) = services.snapshot() {
//!         // Plan from what is there now.
//!     }
//!     listener.wait().await;
//! }
//! # }
//! ```

mod backoff;
mod decode;
pub mod source;
pub mod store;
pub mod table;
pub mod watch;

pub use source::Source;
pub use store::{Listener, Store, Wake};
pub use table::{Change, Content};
pub use watch::{error_chain, jitter, watch};
