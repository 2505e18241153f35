//! The promises that whole clusters keep, one module each. They are one program: linked once, and
//! its tests run side by side. `cargo test -p e2e --test promises worker_lost` runs one module.

#![expect(
    clippy::unwrap_used,
    reason = "a test program: a failed step is a failed test"
)]

mod attackers;
mod audit_tamper;
mod beginning;
mod broker_log;
mod broker_reload;
mod clocks;
mod cluster_check;
mod collection;
mod coordinator_restart;
mod cosigned;
mod data_set;
mod directions;
mod disk_full;
mod doctor;
mod endings;
mod enrolment;
mod enrolment_mutual;
mod enrolment_records;
mod enrolment_trust;
mod foreign_bytes;
mod foreign_messages;
mod foreign_store;
mod foreign_text;
mod four_bits;
mod frozen;
mod hostile_messages;
mod lagging_node;
mod leaked;
mod ledger_receipts;
mod log_flood;
mod log_in_store;
mod log_owner;
mod lost_ledger;
mod loud_log;
mod many_chunks;
mod metrics;
mod mutual_tls;
mod no_worker;
mod one_identity;
mod open_layers;
mod own_messages;
mod own_uploads;
mod permissions;
mod poisoned_state;
mod privacy;
mod promotion;
mod quarantine;
mod receipts;
mod recompute;
mod refused_requests;
mod reissued;
mod release_before;
mod restore;
mod revoked;
mod rotated;
mod rotated_authority;
mod rotated_events;
mod rotated_users;
mod run_halted;
mod secrets_renewed;
mod secure_aggregation;
mod security_events;
mod service_restart;
mod short_credentials;
mod shut_out;
mod shutdown;
mod signals;
mod slow_line;
mod status;
mod stop_alone;
mod stopped_urls;
mod team;
mod tenants;
mod tree_heads;
mod two_coordinators;
mod two_workers_reference;
mod two_workers_torch;
mod up_again;
mod worker_lost;
mod wrong_credentials;
