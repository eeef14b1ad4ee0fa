#!/bin/sh
# Each time that nginx renews a busy connection, after 1000 calls, connect-node fails some of them as INTERNAL.
#
# nginx 1.22.1, @connectrpc/connect-node 2.1.2, @grpc/grpc-js 1.14.7, Node 20, Debian 12.
#
# A server that ends a connection names the last call that it takes (GOAWAY); HTTP/2 promises that it has not touched
# those after it, and clients of gRPC repeat them on a new connection without a word. So a guess would be that nothing
# is lost, as with grpcio and grpc-js; or that such a call is at least UNAVAILABLE, the code that gRPC has for a refused
# stream and that policies repeat. connect-node lets each call fail that it had sent meanwhile, as INTERNAL "Stream
# closed with error code NGHTTP2_REFUSED_STREAM", which no policy repeats. It does the same to a server of grpcio with
# grpc.max_connection_age_ms, and needs several calls at a time for it.
#
# What helps: an interceptor that repeats a call that failed with this message, which is safe for every call;
# keepalive_requests of nginx makes it rare, but keepalive_time ends each connection after an hour.
#
# Seen (the number of lost calls varies):
#   nginx, 5000 calls, 60 at a time
#   grpc-js: 5000 ok
#   connect-node: 4927 ok, 73 [internal] Stream closed with error code NGHTTP2_REFUSED_STREAM
#   connect-node, keepalive_requests 1000000: 5000 ok
#
# Exit code 0 while the behaviour is as described, 1 when it has changed. Needs Debian 12 with apt-get, and Node 20 with
# npm.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
(cd "$folder" && apt-get download --quiet --quiet nginx libpcre2-8-0 2>/dev/null)
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder/debian"; done
npm install --prefix "$folder" --no-audit --no-fund --silent @bufbuild/protobuf@2.12.0 @connectrpc/connect@2.1.2 \
    @connectrpc/connect-node@2.1.2 @grpc/grpc-js@1.14.7
cat > "$folder/show.mjs" <<'NODE'
import { file_google_protobuf_empty } from "@bufbuild/protobuf/wkt";
import { create, createFileRegistry } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { createClient } from "@connectrpc/connect";
import { connectNodeAdapter, createGrpcTransport } from "@connectrpc/connect-node";
import grpc from "@grpc/grpc-js";
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { createServer } from "node:http2";
import { connect, createServer as createTcpServer } from "node:net";

const CALLS = 5000;
const AT_A_TIME = 60;
const folder = process.argv[2];
const file = create(FileDescriptorProtoSchema, {
  name: "a.proto",
  syntax: "proto3",
  dependency: ["google/protobuf/empty.proto"],
  service: [{ name: "A", method: [{ name: "Call", inputType: ".google.protobuf.Empty", outputType: ".google.protobuf.Empty" }] }],
});
const service = createFileRegistry(
  create(FileDescriptorSetSchema, { file: [file_google_protobuf_empty.proto, file] }),
).getService("A");
const server = createServer(connectNodeAdapter({ routes: (router) => router.service(service, { call: () => ({}) }) }));
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const free = createTcpServer().listen(0, "127.0.0.1");
await new Promise((listening) => free.once("listening", listening));
const { port } = free.address();
await new Promise((closed) => free.close(closed));

async function behind(requests, run) {
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${folder};`);
  writeFileSync(
    `${folder}/nginx.conf`,
    `daemon off; master_process off; pid ${folder}/pid; error_log /dev/null; events { }
     http { access_log off; ${temporary.join(" ")} ${requests}
       upstream a { server 127.0.0.1:${server.address().port}; keepalive 64; }
       server { listen 127.0.0.1:${port} http2; location / { grpc_pass grpc://a; } } }`,
  );
  const libraries = { LD_LIBRARY_PATH: `${folder}/debian/usr/lib/x86_64-linux-gnu` };
  const nginx = spawn(`${folder}/debian/usr/sbin/nginx`, ["-c", `${folder}/nginx.conf`], { env: libraries, stdio: "ignore" });
  const ended = new Promise((exit) => nginx.once("exit", exit));
  for (let tries = 0; tries < 200 && !(await listens()); tries++) {
    await new Promise((later) => setTimeout(later, 50));
  }
  await run();
  nginx.kill();
  await ended;
}

function listens() {
  return new Promise((known) => {
    const knock = connect(port, "127.0.0.1", () => known(true) || knock.destroy());
    knock.once("error", () => known(false));
  });
}

async function show(name, call) {
  const ends = new Map();
  let begun = 0;
  const caller = async () => {
    while (begun++ < CALLS) {
      const end = await call().then(() => "ok", (error) => error.message);
      ends.set(end, (ends.get(end) ?? 0) + 1);
    }
  };
  await Promise.all(Array.from({ length: AT_A_TIME }, caller));
  console.log(`${name}: ${[...ends].map(([end, number]) => `${number} ${end}`).join(", ")}`);
  return ends;
}

const same = (bytes) => bytes;
const lost = "[internal] Stream closed with error code NGHTTP2_REFUSED_STREAM";
const byConnect = (name) => {
  const client = createClient(service, createGrpcTransport({ baseUrl: `http://127.0.0.1:${port}` }));
  return show(name, () => client.call({}));
};
const byGrpcJs = async () => {
  const client = new grpc.Client(`127.0.0.1:${port}`, grpc.credentials.createInsecure());
  const call = () =>
    new Promise((ok, failed) =>
      client.makeUnaryRequest("/A/Call", same, same, Buffer.alloc(0), (error) => (error ? failed(error) : ok())),
    );
  const ends = await show("grpc-js", call);
  client.close();
  return ends;
};
const seen = [];
console.log(`nginx, ${CALLS} calls, ${AT_A_TIME} at a time`);
await behind("", async () => seen.push(await byGrpcJs(), await byConnect("connect-node")));
await behind("keepalive_requests 1000000;", async () => seen.push(await byConnect("connect-node, keepalive_requests 1000000")));
const asDescribed = seen[0].get("ok") === CALLS && seen[1].get(lost) > 0 && seen[2].get("ok") === CALLS;
process.exit(asDescribed ? 0 : 1);
NODE
node "$folder/show.mjs" "$folder"
