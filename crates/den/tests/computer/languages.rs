//! pip and npm, with packages that are compiled.

use super::lab::Lab;

#[test]
fn packages_with_native_parts_are_compiled() {
    let lab = Lab::with(&[]);
    lab.sh("python3 -m venv /opt/v && /opt/v/bin/pip install --quiet --no-binary :all: markupsafe").ok();
    lab.check(
        "compiled by pip",
        "/opt/v/bin/python -c 'import markupsafe._speedups as s, markupsafe as m; print(s.__file__.endswith(\".so\"), m.escape(\"<b>\"))'",
        "True &lt;b&gt;",
    );
    lab.sh("/opt/v/bin/pip install --quiet numpy").ok();
    lab.check(
        "a wheel",
        "/opt/v/bin/python -c 'import numpy; print(int(numpy.ones((300, 300)).dot(numpy.ones((300, 300))).sum()))'",
        "27000000",
    );
    lab.sh("mkdir /opt/n && cd /opt/n && npm init -y > /dev/null && npm install --no-fund --no-audit --build-from-source bufferutil").ok();
    lab.check(
        "compiled by npm",
        "cd /opt/n && ls node_modules/bufferutil/build/Release/bufferutil.node | wc -l && \
         node -e 'const b = require(\"bufferutil\"), x = Buffer.from(\"abcd\"); b.mask(x, Buffer.from([1, 1, 1, 1]), x, 0, 4); console.log(x.toString())'",
        "1\n`cbe",
    );
    // As another user, without a way to root.
    lab.check(
        "as a user",
        "sudo -u user -i sh -c 'python3 -m venv v && v/bin/pip install --quiet six && v/bin/python -c \"import six; print(six.PY3)\"'",
        "True",
    );
}
