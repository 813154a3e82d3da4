//! PostgreSQL with its own cluster and benchmark, and Redis.

use super::lab::Lab;

#[test]
fn postgresql_and_redis_run() {
    let lab = Lab::with(&["postgresql", "redis-server"]);
    // The package has made a cluster by initdb already; another one, by hand and as another user.
    lab.check("initdb", "pg_lsclusters -h | cut -d' ' -f1-2 | tr -s ' '", "15 main");
    lab.check(
        "a cluster of one's own",
        "su postgres -c '/usr/lib/postgresql/15/bin/initdb -D /tmp/own > /tmp/initdb.log' && head -1 /tmp/own/PG_VERSION",
        "15",
    );
    lab.sh("pg_ctlcluster 15 main start").ok();
    lab.check(
        "SQL",
        "su postgres -c \"psql -qtAc 'create table t (n int primary key); insert into t select generate_series(1, 10000); select sum(n) from t'\"",
        "50005000",
    );
    let bench =
        lab.sh("su postgres -c 'createdb bench && pgbench -q -i -s 2 bench && pgbench -T 3 -c 4 -j 2 bench' 2>&1");
    let out = bench.ok();
    assert!(out.contains("number of failed transactions: 0"), "{out}");
    let rate = out.lines().find_map(|line| line.strip_prefix("tps = ")?.split('.').next()?.parse::<u32>().ok());
    assert!(rate.is_some_and(|rate| rate > 20), "{out}");
    // A crash of the server and its recovery: what was committed is there.
    lab.sh("kill -KILL $(head -1 /var/lib/postgresql/15/main/postmaster.pid); sleep 1; pg_ctlcluster 15 main start")
        .ok();
    lab.check("after a crash", "su postgres -c \"psql -qtAc 'select count(*) from t'\"", "10000");

    lab.sh("service redis-server start").ok();
    lab.until("redis answers", "redis-cli ping");
    lab.check("redis", "redis-cli set word well > /dev/null && redis-cli get word", "well");
    lab.check("its disk", "redis-cli save && ls /var/lib/redis", "OK\ndump.rdb");
    let out = lab.sh("redis-benchmark -q -n 20000 -t get,set --csv").ok();
    assert!(out.contains("\"SET\"") && out.contains("\"GET\""), "{out}");
}
