// A bounded cache that several threads share: what is missing is loaded once, however many ask for it at the
// same time.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <exception>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sifcrypt {

template <typename Key, typename Value, typename Hash = std::hash<Key>>
class SharedCache {
 public:
  using Pointer = std::shared_ptr<const Value>;
  struct Loaded {
    Pointer value;
    /// Counts against the capacity.
    size_t cost = 0;
  };

  /// What is in use elsewhere stays alive beyond the capacity, it is only forgotten here.
  explicit SharedCache(size_t capacity) : capacity_(capacity) {}

  /// `load` runs without the lock and returns Loaded. Its exception goes to everybody who waits, and is not
  /// remembered.
  template <typename Load>
  Pointer Get(const Key& key, Load load) {
    std::vector<Pointer> dropped;  // freed after the lock is released
    std::unique_lock<std::mutex> lock(mutex_);
    const auto [found, is_new] = entries_.try_emplace(key);
    if (!is_new) {
      const std::shared_ptr<Entry> entry = found->second;
      if (entry->done) {
        recent_.splice(recent_.begin(), recent_, entry->place);
        return entry->value;
      }
      ++waiting_;
      loaded_.wait(lock, [&] { return entry->done; });
      --waiting_;
      if (entry->failure) std::rethrow_exception(entry->failure);
      return entry->value;
    }
    std::shared_ptr<Entry> entry;
    std::list<Key> place;
    Loaded loaded;
    try {
      entry = std::make_shared<Entry>();
      found->second = entry;
      lock.unlock();
      place.push_front(key);
      loaded = load();
      lock.lock();
    } catch (...) {
      if (!lock.owns_lock()) lock.lock();
      entries_.erase(key);
      if (entry) {
        entry->failure = std::current_exception();
        entry->done = true;
        if (waiting_ > 0) loaded_.notify_all();
      }
      throw;
    }
    entry->value = loaded.value;
    entry->cost = loaded.cost;
    entry->place = place.begin();
    entry->done = true;
    recent_.splice(recent_.begin(), place);
    used_ += loaded.cost;
    if (waiting_ > 0) loaded_.notify_all();
    while (used_ > capacity_ && !recent_.empty()) {
      const auto last = entries_.find(recent_.back());
      used_ -= last->second->cost;
      // A copy: somebody who waited for it may not have fetched it yet.
      dropped.push_back(last->second->value);
      entries_.erase(last);
      recent_.pop_back();
    }
    return loaded.value;
  }

 private:
  struct Entry {
    Pointer value;
    size_t cost = 0;
    std::exception_ptr failure;
    bool done = false;
    typename std::list<Key>::iterator place;
  };

  const size_t capacity_;
  std::mutex mutex_;
  std::condition_variable loaded_;
  size_t waiting_ = 0;
  size_t used_ = 0;
  /// Most recently used first; only what is loaded.
  std::list<Key> recent_;
  std::unordered_map<Key, std::shared_ptr<Entry>, Hash> entries_;
};

}  // namespace sifcrypt
