// What `npm pack` puts into the package, and what is kept out of the lock file.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";

const PACKAGE = new URL("../", import.meta.url);

test("the package has the built client with its types, and nothing else", () => {
  const [packed] = JSON.parse(
    execFileSync("npm", ["pack", "--dry-run", "--json", "--ignore-scripts"], { cwd: PACKAGE, encoding: "utf8" }),
  );
  const files: string[] = packed.files.map(({ path }: { path: string }) => path);
  assert.deepEqual(
    files.filter((file) => !file.startsWith("dist/")),
    ["README.md", "package.json"],
  );
  const modules = files.filter((file) => file.endsWith(".js"));
  assert(modules.includes("dist/index.js") && modules.includes("dist/gen/pulsa/otp/v1/otp_service_pb.js"));
  assert.deepEqual(files.filter((file) => file.endsWith(".d.ts")).length, modules.length);
  for (const file of files) {
    const source = file.replace(/^dist/, "src").replace(/(\.d\.ts|\.js)$/, ".ts");
    assert(existsSync(new URL(source, PACKAGE)), `${file} is left from an earlier build`);
  }
});

test("the lock file has the hash of each package, and no address of a registry", () => {
  const text = readFileSync(new URL("package-lock.json", PACKAGE), "utf8");
  assert.doesNotMatch(text, /"resolved"|registry/);
  const { packages } = JSON.parse(text) as { packages: Record<string, { integrity?: string }> };
  for (const [path, { integrity }] of Object.entries(packages)) {
    assert(path === "" || integrity?.startsWith("sha512-"), path);
  }
});
