//! Lists and watches objects of the API server, and keeps their typed views in tables.
//!
//! ```text
//! API server --list, watch--> watch --> Table (in a Store) --wake--> planner
//!                                          ^                            |
//!                                          +--- responses to writes ----+
//! ```
//!
//! | module | contents |
//! |---|---|
//! | [`table`] | the newest known state of the objects of one kind; it never goes back to an older state |
//! | [`source`] | key and view of an object, for each kind that Landfall watches |
//! | [`store`] | a table that several tasks share, and the [`Wake`] that signals its changes |
//! | [`watch`](mod@watch) | the list and the watch that feed a store |
//! | [`watch_one`](fn@watch_one) | the watch of one object, by name |
//! | `decode` | JSON of lists and watches; an object that cannot be decoded does not affect others |
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
//!         // Plan from the current state.
//!     }
//!     listener.wait().await;
//! }
//! # }
//! ```

mod decode;
pub mod source;
pub mod store;
pub mod table;
pub mod watch;
mod watch_one;

pub use source::Source;
pub use store::{Listener, Store, Wake};
pub use table::{Change, Content};
pub use watch::{await_response, error_chain, jitter, watch};
pub use watch_one::{OneObject, ReadBy, Seen, watch_one};
