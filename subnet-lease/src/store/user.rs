//! Who we are to the store, and whether it asks.

use etcd_client::Client;
use tokio::sync::watch;

use super::client::Store;
use super::failure::asks_nobody;

impl Store {
    /// Whether we have a user and the store asks nobody who they are, because authentication is switched off there. As
    /// the last login found it: a token that we have is not refused when authentication is switched off, only ignored.
    pub fn user_ignored(&self) -> watch::Receiver<bool> {
        self.user_ignored.subscribe()
    }

    /// What to tell a person of that.
    pub fn user_ignored_text(&self) -> String {
        format!(
            "authentication is switched off in the store at {}: it is used without a user, and everybody who reaches it can \
             change the leases; switch it on (etcdctl auth enable), or give no user",
            self.endpoints()
        )
    }

    /// Shows a new connection's store our name and password, where we have them, for a token that goes with each
    /// request.
    pub(super) async fn log_in(&self, client: &mut Client) -> Result<(), etcd_client::Error> {
        let Some((name, password)) = &self.config.credentials.user else { return Ok(()) };
        let outcome = client.update_user(Some((name.clone(), password.reveal().to_owned()))).await;
        let ignored = match outcome {
            Ok(()) => false,
            Err(error) if asks_nobody(&error) => true,
            Err(error) => return Err(error),
        };
        self.user_ignored.send_if_modified(|before| std::mem::replace(before, ignored) != ignored);
        Ok(())
    }
}
