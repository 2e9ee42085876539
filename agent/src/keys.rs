//! The keys with which speakers seal what they say to each other: one Secret, which controllers keep and agents read.
//!
//! ```text
//!  controller: keeper --makes, rotates--> Secret landfall-hello-keys --watch--> agent: supply --Keys--> speaker
//! ```
//!
//! | room | what is in it |
//! |---|---|
//! | [`content`] | what stands in the Secret, and which of it are keys (pure) |
//! | [`rotation`] | what is to be written there, and when (pure) |
//! | [`follow`] | watches that one Secret |
//! | [`keeper`] | does in a controller what `rotation` says |
//! | [`supply`] | hands an agent's speaker the keys, and says why there are none |

pub(crate) mod content;
pub(crate) mod follow;
pub mod keeper;
pub(crate) mod rotation;
pub(crate) mod supply;

use std::fmt;
use std::sync::Arc;

pub(crate) use content::Content;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

/// The name of the Secret. The roles in deploy/landfall.yaml name it too.
pub const NAME: &str = "landfall-hello-keys";

/// Where the Secret is.
#[derive(Clone)]
pub struct Place {
    /// The client that reads or writes it.
    pub client: Client,
    /// Its namespace.
    pub namespace: String,
}

impl Place {
    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{NAME}", self.namespace)
    }
}

/// What is known of the Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Nothing yet: the API server has not answered.
    #[default]
    Unknown,
    /// There is none.
    Missing,
    /// It says this.
    There(Arc<Content>),
}
