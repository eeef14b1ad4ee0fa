// `python -m server dev`: the real server over a PostgreSQL of its own, with stand-ins for Stripe and the providers.

import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const CHECKOUT = fileURLToPath(new URL("../../../", import.meta.url));

export class DevServer {
  readonly #data = mkdtempSync(join(tmpdir(), "pulsa-typescript-"));
  readonly #ports: readonly number[];
  #process: ChildProcess | undefined;
  /** Of the organization "demo", with all permissions. */
  token = "";

  private constructor(ports: readonly number[]) {
    this.#ports = ports;
  }

  static async create(): Promise<DevServer> {
    return new DevServer(await freePorts(4));
  }

  get baseUrl(): string {
    return `http://127.0.0.1:${this.#ports[0]}`;
  }

  /** Start it, and wait until it answers. */
  async start(): Promise<void> {
    const [grpc, webhook, stripe, messages] = this.#ports;
    const server = spawn(".venv/bin/python", ["-m", "server", "dev"], {
      cwd: CHECKOUT,
      env: {
        ...process.env,
        PULSA_DATA: this.#data,
        PULSA_LISTEN: `127.0.0.1:${grpc}`,
        PULSA_WEBHOOK_LISTEN: `127.0.0.1:${webhook}`,
        PULSA_METRICS_LISTEN: "off",
        PULSA_SANDBOX_STRIPE_PORT: String(stripe),
        PULSA_SANDBOX_MESSAGES_PORT: String(messages),
        PULSA_LIMIT_CALLS_AT_ONCE: "16",
      },
      stdio: ["ignore", "pipe", "inherit"],
    });
    this.#process = server;
    let output = "";
    await new Promise<void>((started, failed) => {
      server.once("exit", () => failed(new Error(`the server did not start:\n${output}`)));
      server.stdout.setEncoding("utf8").on("data", (text: string) => {
        output += text;
        if (output.includes("To try in another terminal")) {
          started();
        }
      });
    });
    this.token = /export TOKEN=(\S+)/.exec(output)?.[1] ?? "";
  }

  /** Stop it as an operator does, and wait until it has ended. */
  async stop(): Promise<void> {
    const server = this.#process;
    if (server && server.exitCode === null) {
      const ended = new Promise((exit) => server.once("exit", exit));
      server.kill("SIGTERM");
      await ended;
    }
  }

  async remove(): Promise<void> {
    await this.stop();
    rmSync(this.#data, { recursive: true, force: true });
  }

  /** The codes that were sent to a destination, newest first. */
  async codes(to: string): Promise<string[]> {
    const answer = await fetch(`http://127.0.0.1:${this.#ports[3]}/messages?to=${encodeURIComponent(to)}`);
    return ((await answer.json()) as { code: string }[]).map(({ code }) => code);
  }
}

async function freePorts(count: number): Promise<number[]> {
  const servers = Array.from({ length: count }, () => createServer().listen(0, "127.0.0.1"));
  await Promise.all(servers.map((server) => new Promise((listening) => server.once("listening", listening))));
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((closed) => server.close(closed))));
  return ports;
}
