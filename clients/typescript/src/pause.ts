/** The shortest time before a repeat. */
export const SHORTEST_PAUSE_MS = 100;
const LONGEST_PAUSE_MS = 5_000;

/** A pause that doubles each time, from 0.1 to 5 s. */
export class Pause {
  #milliseconds = SHORTEST_PAUSE_MS;

  /** The time to wait now. */
  takeMs(): number {
    const taken = this.#milliseconds;
    this.#milliseconds = Math.min(2 * taken, LONGEST_PAUSE_MS);
    return taken;
  }
}
