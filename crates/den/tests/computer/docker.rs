//! dockerd inside: build, run, published ports, networks, compose.

use super::lab::Lab;

const SETUP: &str = r#"
set -e
mkdir -p /root/web/www && cd /root/web
cp /bin/busybox . && echo 'well served' > www/index.html
cat > Dockerfile <<'F'
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "/bin/busybox --install -s /bin && mkdir /tmp && echo made in a build > /made"]
COPY www /www
CMD ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"]
F
mkdir -p /root/two && cd /root/two
cat > docker-compose.yml <<'F'
version: "3"
services:
  back:
    image: web
  front:
    image: web
    depends_on: [back]
    command: ["sh", "-c", "until wget -q -O /www/index.html http://back/; do sleep 0.2; done; echo by way of front >> /www/index.html; exec httpd -f -p 80 -h /www"]
    ports: ["9090:80"]
F
"#;

#[test]
fn docker_builds_and_runs_containers() {
    let lab = Lab::with(&["docker.io", "docker-compose", "busybox-static", "iptables"]);
    lab.sh(SETUP).ok();
    lab.keep(&["sh", "-c", "exec dockerd > /var/log/dockerd.log 2>&1"]);
    lab.until("dockerd answers", "docker info > /dev/null 2>&1 || { tail -3 /var/log/dockerd.log; false; }");
    lab.check("its driver", "docker info --format '{{.Driver}}' 2>/dev/null", "overlay2");

    lab.sh("docker build --quiet --tag web /root/web").ok();
    lab.check("what a build made", "docker run --rm web cat /made", "made in a build");
    lab.check(
        "an imported root",
        "tar -c -C /root/web busybox | docker import - flat > /dev/null; docker run --rm flat /busybox echo imported",
        "imported",
    );
    lab.check("PID 1 of its own", "docker run --rm web sh -c 'echo $$ $(id -u) $(hostname | wc -c)'", "1 0 13");

    lab.sh("docker run --detach --name one --publish 8080:80 web").ok();
    lab.until("the published port answers", "curl -sf localhost:8080");
    lab.check("on loopback", "curl -sf 127.0.0.1:8080", "well served");
    lab.check("on the computer's own address", "curl -sf 10.0.0.2:8080", "well served");
    lab.check("from the next container", "docker run --rm --link one web wget -q -O - http://one/", "well served");
    lab.check("exec", "docker exec one cat /made", "made in a build");
    lab.check(
        "a volume",
        "docker run --rm -v data:/d web sh -c 'echo kept > /d/f'; docker run --rm -v data:/d web cat /d/f",
        "kept",
    );
    lab.check(
        "logs and removal",
        "docker run --name two web echo said; docker logs two; docker rm -f one two",
        "said\nsaid\none\ntwo",
    );
    // The gate is what the containers' way out meets, too.
    lab.check("the way out", "docker run --rm web sh -c 'nslookup nothing.invalid > /dev/null 2>&1; echo $?'", "1");

    lab.sh("cd /root/two && docker-compose up --detach").ok();
    let said = lab.until("the services talk to each other", "curl -sf localhost:9090");
    assert_eq!(said, "well served\nby way of front");
    lab.sh("cd /root/two && docker-compose down --timeout 1").ok();
    lab.check("nothing is left of them", "docker ps --all --quiet | wc -l", "0");

    // Docker 20.10 asks for capabilities that a computer does not have; docs/COMPUTER.md.
    lab.refused(
        "a privileged container",
        "docker run --rm --privileged web true",
        "unable to apply caps: operation not permitted",
    );
    lab.check("the capabilities that there are", "docker run --rm --cap-add NET_ADMIN --cap-add SYS_ADMIN --security-opt seccomp=unconfined web mount -t tmpfs t /tmp && echo well", "well");
}
