// Verifies call-backs with FLORA's official client: for each of the vectors on stdin, whether it is accepted.
import { readFileSync } from 'node:fs';
import { Webhooks } from '@flora-ai/flora';

const webhooks = new Webhooks();
const verdicts = [];
for (const { body, header, secret, now } of JSON.parse(readFileSync(0, 'utf8'))) {
  try {
    await webhooks.verify(body, { 'flora-signature': header }, secret, { now: () => now * 1000 });
    verdicts.push(true);
  } catch {
    verdicts.push(false);
  }
}
console.log(JSON.stringify(verdicts));
