//! A git server in one computer, cloned over http from another where a rule allows it.

use den_testkit::House;

use super::lab::{DEN, Install as _};

#[test]
fn a_repository_is_cloned_from_another_computer() {
    let house = House::open(DEN);
    house.new_computer("forge");
    house.den(&["new", "lab", "--memory", "1GiB", "--pids", "512"]).ok();
    house.apt("forge", &["nginx-light", "fcgiwrap"]);
    let setup = r#"
        set -e
        git config --global init.defaultBranch main; git config --global user.email a@b.c; git config --global user.name A
        git config --global --add safe.directory '*'
        mkdir -p /srv/git /root/work; cd /root/work; git init -q .
        for i in $(seq 200); do echo "line $i of a file" > file$i; done
        head -c 3000000 /dev/urandom > big
        git add -A; git commit -q -m first
        git clone -q --bare . /srv/git/one.git; git -C /srv/git/one.git config http.receivepack true
        chown -R www-data:www-data /srv/git
        cat > /etc/nginx/sites-enabled/default <<'F'
server {
    listen 127.0.0.1:8080;
    client_max_body_size 100m;
    location / {
        include fastcgi_params;
        fastcgi_param SCRIPT_FILENAME /usr/lib/git-core/git-http-backend;
        fastcgi_param GIT_HTTP_EXPORT_ALL "";
        fastcgi_param GIT_PROJECT_ROOT /srv/git;
        fastcgi_param REMOTE_USER anyone;
        fastcgi_param PATH_INFO $uri;
        fastcgi_pass unix:/srv/git/fcgi.sock;
    }
}
F
        service nginx start > /dev/null
        for i in $(seq 50); do test -S /srv/git/fcgi.sock && break; sleep 0.1; done
        curl -sf 'http://127.0.0.1:8080/one.git/info/refs?service=git-upload-pack' | grep -a -c ' refs/heads/main'
    "#;
    house.sh("forge", "mkdir /srv/git && chown www-data: /srv/git").ok();
    let backend = "exec su www-data -s /bin/sh -c 'exec fcgiwrap -s unix:/srv/git/fcgi.sock'";
    house.den(&["exec", "forge", "-d", "--", "sh", "-c", backend]).ok();
    assert_eq!(house.den(&["exec", "forge", "--", "bash", "-c", setup]).ok(), "1");
    let clone = "git clone -q http://forge.vm.internal:8080/one.git /root/one";
    // Without a rule there is no such name.
    let ran = house.sh("lab", clone);
    assert!(ran.code != 0 && ran.stderr.contains("Could not resolve host"), "{ran:?}");
    house.den(&["net", "lab", "allow", "vm:forge:8080"]).ok();
    house.sh("lab", clone).ok();
    assert_eq!(house.sh("lab", "ls /root/one | wc -l; git -C /root/one log --format=%s").ok(), "201\nfirst");
    // And back: a push.
    let push = "cd /root/one && git config user.email b@b.c && git config user.name B && echo more >> file1 && \
                git commit -qam second && git push -q origin HEAD && git ls-remote -q origin refs/heads/main | cut -f2";
    assert_eq!(house.sh("lab", push).ok(), "refs/heads/main");
    assert_eq!(house.sh("forge", "git --git-dir /srv/git/one.git log --format=%s main | head -1").ok(), "second");
    // Another port of the same computer has no rule.
    assert_ne!(house.sh("lab", "curl -s -m 5 http://forge.vm.internal:8081/").code, 0);
}
