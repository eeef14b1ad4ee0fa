#!/bin/sh
# connect-node takes the answer with which nginx is usually set to say UNAVAILABLE for UNKNOWN.
#
# nginx 1.22.1, @connectrpc/connect-node 2.1.2, Node 20, Debian 12.
#
# nginx's own example maps errors of a gRPC server to `grpc-status: 14` with `return 204`. grpcio and grpc-js read the
# grpc-status, so a guess would be that every client does. connect-node looks at the HTTP status first: 204 is UNKNOWN,
# which no client should repeat. The gRPC protocol over HTTP/2 gives 200 to every answer of a gRPC server.
#
# What helps: `return 200`, which is also headers alone.
#
# Seen:
#   return 204: [unknown] HTTP 204
#   return 200: [unavailable]
#
# Exit code 0 while the behaviour is as described, 1 when it has changed. Needs Debian 12 with apt-get, and Node 20 with npm.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
(cd "$folder" && apt-get download --quiet --quiet nginx libpcre2-8-0 2>/dev/null)
for package in "$folder"/*.deb; do dpkg -x "$package" "$folder/debian"; done
npm install --prefix "$folder" --no-audit --no-fund --silent \
    @bufbuild/protobuf@2.12.0 @connectrpc/connect@2.1.2 @connectrpc/connect-node@2.1.2
cat > "$folder/show.mjs" <<'NODE'
import { file_google_protobuf_empty } from "@bufbuild/protobuf/wkt";
import { create, createFileRegistry } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";

const folder = process.argv[2];
const service = create(FileDescriptorProtoSchema, {
  name: "a.proto",
  syntax: "proto3",
  dependency: ["google/protobuf/empty.proto"],
  service: [{ name: "A", method: [{ name: "Call", inputType: ".google.protobuf.Empty", outputType: ".google.protobuf.Empty" }] }],
});
const registry = createFileRegistry(
  create(FileDescriptorSetSchema, { file: [file_google_protobuf_empty.proto, service] }),
);
const free = createServer().listen(0, "127.0.0.1");
await new Promise((listening) => free.once("listening", listening));
const { port } = free.address();
await new Promise((closed) => free.close(closed));

async function answer(status) {
  const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map((name) => `${name}_temp_path ${folder};`);
  writeFileSync(
    `${folder}/nginx.conf`,
    `daemon off; master_process off; pid ${folder}/pid; error_log /dev/null; events { }
     http { access_log off; ${temporary.join(" ")}
       server { listen 127.0.0.1:${port} http2; error_page 502 = @unavailable; location / { grpc_pass grpc://127.0.0.1:1; }
         location @unavailable { internal; default_type application/grpc; add_header grpc-status 14 always; return ${status}; }
     } }`,
  );
  const libraries = { LD_LIBRARY_PATH: `${folder}/debian/usr/lib/x86_64-linux-gnu` };
  const nginx = spawn(`${folder}/debian/usr/sbin/nginx`, ["-c", `${folder}/nginx.conf`], { env: libraries, stdio: "ignore" });
  const ended = new Promise((exit) => nginx.once("exit", exit));
  for (let tries = 0; tries < 200 && !(await listens()); tries++) {
    await new Promise((later) => setTimeout(later, 50));
  }
  const client = createClient(registry.getService("A"), createGrpcTransport({ baseUrl: `http://127.0.0.1:${port}` }));
  const error = ConnectError.from(await client.call({}).catch((reason) => reason));
  nginx.kill();
  await ended;
  console.log(`return ${status}: ${error.message.trim()}`);
  return error.message.trim();
}

function listens() {
  return new Promise((known) => {
    const knock = connect(port, "127.0.0.1", () => known(true) || knock.destroy());
    knock.once("error", () => known(false));
  });
}

const unknown = (await answer(204)) === "[unknown] HTTP 204";
const unavailable = (await answer(200)).startsWith("[unavailable]");
process.exit(unknown && unavailable ? 0 : 1);
NODE
node "$folder/show.mjs" "$folder"
