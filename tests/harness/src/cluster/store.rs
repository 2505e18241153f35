//! The store of a cluster, and the way to it.

use super::{Cluster, STORE};
use crate::{Line, Quality};

impl Cluster {
    /// Starts the store.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start_store(&mut self) {
        self.launch(self.store_recipe("127.0.0.1:0")).await;
        // The store keeps its port at a restart, since grants and configurations name it.
        let address = self.process(STORE).addresses()[0].clone();
        let arguments = self.store_recipe(&address).arguments;
        self.process(STORE).set_arguments(arguments);
        self.write_endpoints(&format!("{}://{address}", self.store_scheme()));
    }

    /// The store's address.
    ///
    /// # Panics
    /// It was not started.
    pub fn store_url(&self) -> String {
        let store = self
            .processes
            .get(STORE)
            .expect("the store is started before what uses it");
        let scheme = self.store_scheme();
        match self.store_address {
            Some(address) => format!("{scheme}://{address}"),
            None => format!("{scheme}://{}", store.addresses()[0]),
        }
    }

    const fn store_scheme(&self) -> &'static str {
        match self.options.plaintext {
            true => "http",
            false => "https",
        }
    }

    /// Puts a line between the store and the services that are started from now on; these reach the
    /// store over the line only.
    ///
    /// # Panics
    /// The store was not started.
    pub fn reach_store_over(&mut self, quality: Quality) -> Line {
        let target = self.process(STORE).addresses()[0]
            .parse()
            .expect("a store tells its address");
        let line = Line::start(target, quality);
        self.store_address = Some(line.address());
        self.write_endpoints(&self.store_url());
        line
    }
}
