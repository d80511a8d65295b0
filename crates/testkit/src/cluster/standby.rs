//! Streaming standbys: to be waited for by synchronous commits, frozen, promoted.

use super::{Cluster, ServerUser, new_home, process, template};
use std::path::Path;
use std::time::Duration;

/// How a standby follows its primary.
#[derive(Debug, Clone)]
pub struct StandbyOptions {
    /// What the primary knows it by, in `synchronous_standby_names`; also the name of its physical slot.
    pub application_name: String,
    /// The local port it reaches the primary through, if not the primary's own.
    pub through_port: Option<u16>,
    /// The database that it names to its primary; synchronising slots needs one.
    pub database: Option<String>,
    /// Settings that override those it inherits.
    pub settings: Vec<(String, String)>,
}

impl StandbyOptions {
    /// A standby with this application name (lower-case letters, digits and `_`), directly connected.
    pub fn named(application_name: &str) -> StandbyOptions {
        StandbyOptions {
            application_name: application_name.to_owned(),
            through_port: None,
            database: None,
            settings: Vec::new(),
        }
    }

    /// Keeps the primary's failover slots in step, from PostgreSQL 17 on.
    pub fn with_failover_slots(mut self) -> StandbyOptions {
        self.database = Some("postgres".to_owned());
        for setting in ["sync_replication_slots", "hot_standby_feedback"] {
            self.settings.push((setting.to_owned(), "on".to_owned()));
        }
        self
    }
}

impl Cluster {
    /// Starts a hot standby of a running primary, through a physical slot, and waits until it streams.
    ///
    /// The data are copied file by file between the backup functions, which every version has; not every build
    /// brings `pg_basebackup`.
    pub async fn standby_of(primary: &Cluster, standby: StandbyOptions) -> Cluster {
        let user = ServerUser::required();
        let home = new_home(&template::base_dir(), user);
        let label = primary.copy_backup(&standby.application_name, &home.path().join("data"), user).await;

        let mut options = primary.options.clone();
        options.settings.extend(standby.settings);
        let cluster =
            Cluster::assemble(home, options, primary.installation.clone(), user, primary.password.clone());
        let mut conninfo = format!(
            "host=127.0.0.1 port={} user=postgres password={} application_name={}",
            standby.through_port.unwrap_or(primary.port()),
            primary.password,
            standby.application_name
        );
        if let Some(database) = &standby.database {
            conninfo.push_str(&format!(" dbname={database}"));
        }
        cluster.write_settings();
        cluster.write_file("standby.signal", "");
        cluster.write_file("backup_label", &label);
        cluster.append_auto_conf(&format!(
            "primary_conninfo = '{conninfo}'\nprimary_slot_name = '{}'\nhot_standby = 'on'\n",
            standby.application_name
        ));
        let cluster = cluster.launch().await;
        for _ in 0..1_000 {
            let streaming = primary
                .scalar(&format!(
                    "SELECT 1 FROM pg_stat_replication WHERE application_name = '{}' AND state = 'streaming'",
                    standby.application_name
                ))
                .await;
            if streaming.is_some() {
                return cluster;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the standby does not stream:\n{}", cluster.log_tail(20));
    }

    /// Copies this server's data while it runs and returns the `backup_label` that makes the copy usable.
    async fn copy_backup(&self, slot: &str, to: &Path, user: Option<ServerUser>) -> String {
        let client = self.connect("postgres").await;
        let (start, stop) = if self.major() >= 15 {
            ("pg_backup_start('testkit', true)", "pg_backup_stop(false)")
        } else {
            ("pg_start_backup('testkit', true, false)", "pg_stop_backup(false, false)")
        };
        client
            .batch_execute(&format!("SELECT pg_create_physical_replication_slot('{slot}', true)"))
            .await
            .expect("create the standby's slot");
        client.batch_execute(&format!("SELECT {start}")).await.expect("start a backup");
        let (from, to) = (self.data_dir(), to.to_owned());
        tokio::task::spawn_blocking(move || {
            template::copy_tree(&from, &to, user, &|path| {
                // The slot keeps the WAL, so it is streamed; slots and the lock belong to the primary.
                ["pg_wal", "pg_replslot", "pg_stat_tmp", "postmaster.pid", "postmaster.opts"]
                    .iter()
                    .any(|name| path.starts_with(name))
            });
        })
        .await
        .expect("copy the primary's data");
        let row =
            client.query_one(&format!("SELECT labelfile FROM {stop}"), &[]).await.expect("stop the backup");
        row.get(0)
    }

    /// Gives `standby`, which is stopped, a logical slot of this server as its files have it: what a failover slot, or a
    /// cluster manager that carries slots over, leaves there.
    ///
    /// # Panics
    /// If there is no such slot, or the standby runs.
    pub fn copy_slot(&self, slot: &str, standby: &Cluster) {
        assert!(standby.pid().is_none(), "stop the standby before it is given a slot");
        let place = Path::new("pg_replslot").join(slot);
        let (from, to) = (self.data_dir().join(&place), standby.data_dir().join(&place));
        template::copy_tree(&from, &to, standby.user, &|_| false);
    }

    fn write_file(&self, name: &str, text: &str) {
        let path = self.data_dir().join(name);
        std::fs::write(&path, text).expect("write into the data directory");
        super::give(&path, self.user);
    }

    fn append_auto_conf(&self, text: &str) {
        let path = self.data_dir().join("postgresql.auto.conf");
        let settings = std::fs::read_to_string(&path).unwrap_or_default();
        self.write_file("postgresql.auto.conf", &format!("{settings}\n{text}"));
    }

    /// Freezes a standby's WAL receiver (SIGSTOP): it is connected, but neither writes nor answers, so synchronous
    /// commits on the primary hang in the state "in the log, but not visible".
    pub async fn pause(&self) {
        let mut receivers = Vec::new();
        let found = process::until(Duration::from_secs(20), || {
            receivers = self.processes("walreceiver");
            !receivers.is_empty()
        })
        .await;
        assert!(found, "no WAL receiver to freeze: is this a streaming standby?");
        process::signal("STOP", &receivers);
    }

    /// Lets a frozen WAL receiver go on.
    pub fn unpause(&self) {
        process::signal("CONT", &self.processes("walreceiver"));
    }

    /// Freezes what sends this server's log: whoever streams from it hears nothing more, and all else goes on.
    pub fn pause_senders(&self) {
        process::signal("STOP", &self.processes("walsender"));
    }

    /// Lets frozen senders go on.
    pub fn unpause_senders(&self) {
        process::signal("CONT", &self.processes("walsender"));
    }

    /// Makes a standby a primary and waits until it takes writes.
    pub async fn promote(&self) {
        self.unpause();
        let promoted = self.scalar("SELECT pg_promote(true, 60)").await;
        assert_eq!(promoted.as_deref(), Some("t"), "the standby was not promoted:\n{}", self.log_tail(20));
    }
}
