// Drives the assets of FLORA's official client against a server, unchanged, and prints what it met as JSON.
import Flora from '@flora-ai/flora';

const [small, large] = process.argv.slice(2);
const flora = new Flora({ maxRetries: 0 });
const place = { workspace_id: 'ws_demo' };

const direct = await flora.assets.upload(small, { ...place, pollIntervalMs: 20 });
const signed = await flora.assets.upload(large, { ...place, pollIntervalMs: 20, content_type: 'video/mp4' });
const byURL = await flora.assets.upload('https://example.com/mug.png', { ...place, pollIntervalMs: 20 });

const reserved = await flora.assets.create({ ...place, source: 'signed-url', content_type: 'image/png' });
const form = new FormData();
for (const [name, value] of Object.entries(reserved.upload.form_fields)) form.append(name, value);
form.append(reserved.upload.file_field, new Blob([new Uint8Array(10)]), 'a.png');
const stored = await fetch(reserved.upload.url, { method: reserved.upload.method, body: form });
const completed = await flora.assets.complete(reserved.asset_id);
const retrieved = await flora.assets.retrieve(signed.asset_id);

async function met(call) {
  try {
    await call();
    return 'nothing';
  } catch (error) {
    return `${error.constructor.name} ${error.status} ${error.error?.error?.code}`;
  }
}

const listed = [];
for await (const asset of flora.assets.list({ limit: 2 })) listed.push(asset.asset_id);
const run = await flora.generations.create({
  ...place,
  project_id: 'prj_demo',
  type: 'video',
  prompt: 'it turns',
  params: { image_url: direct.url },
});

console.log(
  JSON.stringify({
    uploads: [direct, signed, byURL].map((asset) => [asset.status, asset.uploaded_via, asset.size_bytes]),
    stored: stored.status,
    completed: completed.status,
    retrieved: retrieved.name,
    listed: listed.length,
    distinct: new Set(listed).size,
    run: run.run_id,
    errors: [
      await met(() => flora.assets.complete(reserved.asset_id)),
      await met(() => flora.assets.retry(reserved.asset_id)),
      await met(() => flora.assets.retrieve('asset_unknown')),
      await met(() => flora.assets.create({ ...place, source: 'http://example.com/a.png' })),
    ],
  }),
);
