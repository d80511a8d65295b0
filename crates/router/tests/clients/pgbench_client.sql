-- The usual transaction in pipelines, with results taken into variables.
\set aid random(1, 100000)
\set tid random(1, 10)
\set delta random(-5000, 5000)
\startpipeline
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);
END;
\endpipeline
SELECT abalance AS balance FROM pgbench_accounts WHERE aid = :aid \gset
\startpipeline
SELECT :balance::int + 1;
SELECT :balance::int + 2;
SELECT :balance::int + 3;
\endpipeline
